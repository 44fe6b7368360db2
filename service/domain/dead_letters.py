"""A dead letter: a message that could not be processed, exactly as it was, and why."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

_NAMESPACE = UUID("5f0c6a0e-7c1d-4b52-9a3e-0d6f5f1f8a11")

UNROUTABLE = "unroutable"
"""The reason of a message for whose routing key no queue is bound."""


@dataclass(frozen=True, slots=True)
class Original:
    """A message as it was published, in values that JSON can hold.

    Args:
        body: its bytes.
        exchange: where it was published to; empty for the default exchange and for a callback.
        routing_key: under which routing key.
        properties: the AMQP properties that it had: messageId, correlationId, type, contentType, …
        headers: its headers, in the form of `messaging.lossless`.
    """

    body: bytes
    exchange: str
    routing_key: str
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a property; empty where it is missing."""
        return str(self.properties.get(name) or "")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One death of a message.

    Args:
        original: the message.
        reason: stable code.
        detail: the reason in words.
        source: the queue that it was read from, the path of a callback, or the exchange that had no queue for it.
        death_id: identifies this death, however often its dead letter is delivered; empty where nothing does.
        redelivered: whether this dead letter may have been stored before.
        died_at: when it died, where that is known.
    """

    original: Original
    reason: str
    detail: str
    source: str
    death_id: str
    redelivered: bool
    died_at: datetime | None

    @property
    def id(self) -> UUID:
        """The same for the same message, whenever it dies again.

        Messages without an id are the same where their bytes are: what needs an id is never carried out without
        one, and the others are told apart by their content.
        """
        came_to = self.original.exchange or self.source
        digest = hashlib.sha256(self.original.body).hexdigest()
        return uuid5(_NAMESPACE, f"{came_to}\n{self.original.text('messageId').strip()}\n{digest}")


def is_repetition(dead: DeadLetter, *, last_death_id: str, replayed: bool) -> bool:
    """Say whether a dead letter is a death that its row knows already.

    In doubt, where the message was replayed meanwhile, it counts as a new one: none may stay hidden as replayed.
    """
    same = dead.death_id == last_death_id if dead.death_id else dead.redelivered
    return same and not replayed
