"""Identities: every id that can be derived is derived, so that repeating an operation gives the same id."""

import hashlib
from datetime import datetime
from uuid import UUID, uuid5
from zlib import crc32

from whatsapp_qr_contracts.addresses import normalize_address

CHANNEL = "WHATSAPP_QR"

# Only the first characters matter to WhatsApp: they mark messages of web clients.
_WHATSAPP_PREFIX = "3EB0"


def new_session_id(chatbot_id: UUID, asked_at: datetime) -> str:
    """Return the public id of a chatbot's first session, from the time its initialize command was made."""
    return f"session_{chatbot_id}_{max(0, int(asked_at.timestamp() * 1000))}"


def conversation_id(chatbot_id: UUID, external_user_id: str) -> UUID:
    """Return the id of the one conversation between a chatbot and a customer."""
    return uuid5(chatbot_id, f"{CHANNEL}:{external_user_id}")


def incoming_message_id(session: UUID, whatsapp_id: str) -> UUID:
    """Return the id of a customer's message, from its session row's id and its WhatsApp id."""
    return uuid5(session, whatsapp_id)


def other_incoming_message_id(session: UUID, whatsapp_id: str, *content: str) -> UUID:
    """Return the id of a customer's message whose WhatsApp id another message of the session had before.

    WhatsApp's ids are unique only within a chat. `content` distinguishes it from the others; no part contains a NUL.
    """
    return uuid5(session, "\0".join((whatsapp_id, *content)))


def outgoing_message_id(chatbot_id: UUID, caller_id: str) -> UUID:
    """Return the id of a message to send, from the Idempotency-Key or id that its caller gave."""
    return uuid5(chatbot_id, caller_id)


def whatsapp_message_id(message_id: UUID) -> str:
    """Return the WhatsApp id under which a message is sent, the same for all its attempts."""
    return _WHATSAPP_PREFIX + hashlib.sha256(message_id.bytes).hexdigest()[:18].upper()


def output_id(source: UUID, output: str) -> str:
    """Return the AMQP message_id of one output of a row: the same at every repetition, different per output."""
    return str(uuid5(source, output))


def key_hash(key: str) -> int:
    """Return the hash of a partition key; the partition is computed from it, for any number of partitions."""
    return crc32(key.encode())


def customer_address(sender: str) -> str:
    """Return the address of a customer in its stored form. Forms other than numbers and JIDs are kept as they are."""
    try:
        return normalize_address(sender)
    except ValueError:
        return sender.strip()


def may_be_one_contact(one: str, other: str) -> bool:
    """Return whether two stored addresses may be the same contact's: equal ones, or a number and a LID."""
    return one == other or sorted((_kind(one), _kind(other))) == ["lid", "number"]


def _kind(address: str) -> str:
    return "number" if address.isdigit() else address.rpartition("@")[2]
