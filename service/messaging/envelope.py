"""The envelope of a received or published message: AMQP properties, never part of the body."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pamqp.encode import encode_table_value

from service.errors import Undeliverable

# aiormq generates an id if there is none; that would hide that the sender gave none.
NO_ID = " "
_CONTRACT_HEADERS = frozenset({"partition-key", "schema-version", "conversation-sequence", "traceparent", "tracestate"})
_MOST_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Envelope:
    """The AMQP properties of a received message."""

    message_id: str
    """Empty if the sender gave none, or a blank one."""
    timestamp: datetime | None
    """When it was published, to the second."""
    redelivered: bool
    """Whether a process may have begun to handle it before."""

    def id_or_dead_letter(self) -> str:
        """Return the message's id.

        Raises:
            Undeliverable: it has none, so a duplicate could not be detected.
        """
        if not self.message_id:
            message = "a command needs the AMQP property message_id, unique per command"
            raise Undeliverable(message, code="missing_id")
        return self.message_id


@dataclass(frozen=True, slots=True)
class Properties:
    """The envelope of one publish: AMQP properties, never part of the body."""

    message_id: str
    correlation_id: str
    type: str
    headers: Mapping[str, Any]


def forwarded_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers that are copied when a message is published again.

    Only those of the contract: the broker itself interprets some others (CC, BCC), and would multiply the message. None
    that is so large that it might not fit into a frame beside ours: each attempt would cost the connection.
    """
    kept = {name: publishable(value) for name, value in (headers or {}).items() if name in _CONTRACT_HEADERS}
    return {name: value for name, value in kept.items() if len(encode_table_value(value)) <= _MOST_HEADER_BYTES}


def publishable(value: Any) -> Any:
    """Return a header's value in a form that can be published.

    Our client library cannot send all values of other clients: a text that is not UTF-8, a double beyond single
    precision.
    """
    try:
        encode_table_value(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
    return value
