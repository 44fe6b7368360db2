"""A dead letter: a message that could not be processed, unchanged, with the reason."""

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
        exchange: to which it was published; empty for the default exchange and for a callback.
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
        """Return a property; empty if it is missing."""
        return str(self.properties.get(name) or "")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed message, with the time and reason of this failure.

    Args:
        original: the message.
        reason: stable code.
        detail: the reason in words.
        source: the queue from which it was read, the path of a callback, or the exchange that had no queue for it.
        death_id: identifies this failure over repeated deliveries of its dead letter; empty if no value does.
        redelivered: whether this dead letter may have been stored before.
        died_at: when it failed, if that is known.
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
        """The same id for the same message, each time that it becomes a dead letter.

        Messages without an id are the same if their bytes are: a command without an id is never executed, and other
        messages are distinguished by their content.
        """
        came_to = self.original.exchange or self.source
        digest = hashlib.sha256(self.original.body).hexdigest()
        return uuid5(_NAMESPACE, f"{came_to}\n{self.original.text('messageId').strip()}\n{digest}")


def is_repetition(dead: DeadLetter, *, last_death_id: str, replayed: bool) -> bool:
    """Return whether a dead letter is a failure that its row has recorded already.

    In doubt, if the message was replayed meanwhile, it counts as a new failure: none may stay hidden as replayed.
    """
    same = dead.death_id == last_death_id if dead.death_id else dead.redelivered
    return same and not replayed
