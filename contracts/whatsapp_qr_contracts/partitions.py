"""The partition of a message: all messages about one chatbot go through one partition, in order."""

import re
from uuid import UUID
from zlib import crc32

_SESSION_ID = re.compile(
    r"session_(?P<chatbot>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})_[0-9]+", re.IGNORECASE
)


def chatbot_key(chatbot_id: UUID) -> str:
    """Return the partition key of a chatbot: its id as lower-case text."""
    return str(chatbot_id)


def session_key(session_id: str) -> str:
    """Return the partition key of a session: its chatbot's; a session id of a foreign form is its own key."""
    own = _SESSION_ID.fullmatch(session_id)
    return own["chatbot"].lower() if own else session_id


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key, from 0 to `partitions` - 1."""
    return crc32(key.encode()) % partitions
