"""Foreign AMQP properties that our client library cannot decode must not cost the connection.

Any client may send a timestamp beyond the calendar or an id that is not UTF-8. pamqp raises on it in the middle of a
frame, the connection is lost, the message is delivered again, and so on: one such message would stop a partition.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from pamqp import decode

Decode = Callable[[bytes], tuple[int, Any]]


@cache
def tolerate_foreign_properties() -> None:
    """Treat a property that cannot be decoded as absent. It is idempotent."""
    timestamp = _tolerant(decode.timestamp, lambda _: 8)
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = timestamp
    decode.METHODS["shortstr"] = _tolerant(decode.short_str, lambda value: value[0] + 1)
    decode.METHODS["table"] = _tolerant(decode.field_table, lambda value: 4 + int.from_bytes(value[:4], "big"))


def _tolerant(read: Decode, width: Callable[[bytes], int]) -> Decode:
    def read_or_skip(value: bytes) -> tuple[int, Any]:
        try:
            return read(value)
        except (ValueError, OverflowError, OSError):
            return width(value), None

    return read_or_skip
