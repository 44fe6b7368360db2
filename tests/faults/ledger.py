"""What a run was promised: everything that was accepted, in that order, and every poison that was given."""

from collections import defaultdict
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True)
class Given:
    """One message that the service, its broker or its gateway has accepted."""

    id: str
    """A message to send: its id. A customer's message: WhatsApp's id."""
    text: str
    """Unique in the run."""


@dataclass
class Link:
    """A chatbot that is linked to a WhatsApp account, and what was accepted of it, each list in order."""

    chatbot_id: UUID
    session_id: str
    customer: str
    outgoing: list[Given] = field(default_factory=list)
    incoming: list[Given] = field(default_factory=list)


@dataclass
class Ledger:
    """Everything that a run was promised."""

    links: list[Link] = field(default_factory=list)
    poison: list[str] = field(default_factory=list)
    """Marks of messages that can never be processed: each must become one dead letter."""
    commands: dict[str, bool] = field(default_factory=dict)
    """Ids of commands that each end in one event, and whether that may be a rejection."""
    pairings: dict[str, str] = field(default_factory=dict)
    """Sessions that were linked and unlinked, with the status that each was left in."""
    repeats: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often something was given again under its old id, by what it was."""

    may_fail: dict[str, float] = field(default_factory=dict)
    """The share of messages to send that may fail, by error code, because of what is done to the gateway."""

    @property
    def accepted(self) -> int:
        """How many messages were accepted."""
        return sum(len(link.outgoing) + len(link.incoming) for link in self.links)
