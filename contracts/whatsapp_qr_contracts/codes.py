"""Every code that the service gives as a reason: each with when it is given, and what to do then.

In messages they are plain strings, because a later version may have more, and a gateway may add its own. So compare
with these, and treat one that you do not know like its neighbours: a rejected command was not carried out, a failed
message was given up.
"""

from collections.abc import Iterable
from enum import StrEnum


class RejectionCode(StrEnum):
    """The `code` of `command.rejected`: why a command was not carried out."""

    UNKNOWN_CHATBOT = "unknown_chatbot"
    """With CHATBOTS=strict a chatbot must be known before its first session: send `chatbot.register` first."""
    NO_SESSION = "no_session"
    """The chatbot has no session: make one with `session.initialize`."""
    ID_REUSED = "id_reused"
    """Another command, or a message with other content, had this id: use a new id for a new one."""
    UNKNOWN_MESSAGE = "unknown_message"
    """The chatbot has no message to send with this `messageId`: take the id from its events."""
    NOT_PENDING = "not_pending"
    """The message to cancel does not wait any more: it was sent, or it failed; there is nothing to do."""
    BEING_SENT = "being_sent"
    """An attempt to send the message to cancel is under way: ask again in some seconds, under a new id."""
    NOT_FAILED = "not_failed"
    """The message to send again has not FAILED: there is nothing to do."""
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    """The session is connected here and the gateway did not take the call that asks: try again later."""
    GATEWAY_ERROR = "gateway_error"
    """The session is connected here and the gateway did not say how it is: try again later, or look at its log."""
    NOT_WANTED = "not_wanted"
    """A repair by the service itself came after somebody had ended the session: there is nothing to do."""
    OUTDATED = "outdated"
    """A repair by the service itself came after the session had changed: there is nothing to do."""


class FailureCode(StrEnum):
    """The `errorCode` of a message that FAILED: why it was given up. A gateway may add its own."""

    EXPIRED = "expired"
    """It waited until its expiry: send it again with `message.retry`, if it is still of use."""
    CANCELLED = "cancelled"
    """It was cancelled while it waited, as you asked."""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """No attempt got a clear answer, so it may have been sent: `message.retry` does not double it at WhatsApp."""
    NUMBER_CHANGED = "number_changed"
    """Another number was linked while it waited: `message.retry` sends it from that one."""
    NOT_ON_WHATSAPP = "not_on_whatsapp"
    """The recipient has no WhatsApp account: correct the number."""
    RESTRICTED = "restricted"
    """WhatsApp restricts the account: send less for some days, then `message.retry`."""
    REFUSED = "refused"
    """The gateway refused it without a code of its own: `errorMessage` says why."""
    FAILED_BY_WHATSAPP = "failed_by_whatsapp"
    """WhatsApp reported that it did not arrive: `message.retry` sends it under a new WhatsApp id."""
    CHATBOT_REMOVED = "chatbot_removed"
    """The chatbot was removed before the message was stored: it was not sent and will not be."""


class DeadLetterReason(StrEnum):
    """Why a message could not be processed and lies among the dead letters."""

    MISSING_ID = "missing_id"
    """It has no AMQP `message_id` and its kind needs one: correct the sender, then publish it with an id."""
    UNKNOWN_TYPE = "unknown_type"
    """Its AMQP `type` names no message that its queue takes: correct the sender."""
    UNKNOWN_VERSION = "unknown_version"
    """Its `schema-version` is newer than the service: update the service, then replay it."""
    INVALID_JSON = "invalid_json"
    """Its body is no JSON: correct the sender."""
    INVALID_MESSAGE = "invalid_message"
    """A field of its body is missing or wrong: `detail` names it; correct the sender."""
    INVALID_CALLBACK = "invalid_callback"
    """The gateway posted what is no callback: `detail` names the field; correct the gateway, then replay it."""
    UNKNOWN_SESSION = "unknown_session"
    """The gateway reported on a session that the service does not have: see which service that gateway belongs to."""
    UNKNOWN_MESSAGE = "unknown_message"
    """A job to send names a message that the database does not have: see whether an older database was restored."""
    HANDLER_FAILED = "handler_failed"
    """Handling it failed each time with something unexpected: the log says what; mend that, then replay it."""
    UNROUTABLE = "unroutable"
    """No queue was bound for its routing key: correct the sender, or declare the topology, then replay it."""
    UNREADABLE = "unreadable"
    """What the dead letter says of its own origin cannot be read: its body is kept, and cannot be replayed."""
    MISROUTED = "misrouted"
    """It was forwarded once and is not at its partition yet: give all processes the same PARTITIONS, then replay it."""
    TOO_LARGE = "too_large"
    """Its body is over MAX_BODY_BYTES and is stored cut: correct the sender."""
    DELIVERY_LIMIT = "delivery_limit"
    """Its readers ended too often before they acknowledged it: the log says why; mend that, then replay it."""
    REJECTED = "rejected"
    """A reader, an AI worker say, rejected it without requeue: that reader's log says why."""
    EXPIRED = "expired"
    """It lay on its queue until its AMQP expiration: replay it, if it is still of use."""
    MAXLEN = "maxlen"
    """Its queue has a length limit and was full: raise the limit, then replay it."""
    MOVED = "moved"
    """The broker moved it and did not say why: look at its queue, then replay it."""


class StatusReason(StrEnum):
    """The `statusReason` of a session: why it has its status. A gateway may add its own."""

    REQUESTED = "requested"
    """The session was ended because somebody asked for it: `session.initialize` links it again."""
    CONNECTION_LOST = "connection_lost"
    """The gateway lost its connection: the service brings the link back by itself."""
    LOGGED_OUT = "logged_out"
    """The phone's owner removed the link: `session.initialize` shows a new QR code."""
    REPLACED = "replaced"
    """Another client took the link over: end that one, then `session.initialize`."""
    RESTRICTED = "restricted"
    """WhatsApp restricts the account: send less for some days."""
    ACTION_REQUIRED = "action_required"
    """The gateway says connected and sends nothing: open WhatsApp on the phone and do what it asks for."""
    QR_EXPIRED = "qr_expired"
    """Nobody scanned the QR code in time: `session.initialize` shows a new one."""
    NO_QR_CODE = "no_qr_code"
    """The gateway showed no QR code in time: the service begins the pairing anew by itself."""
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    """The gateway did not take the call: see whether it runs; the service tries again by itself."""
    GATEWAY_ERROR = "gateway_error"
    """The gateway refused the call or did not say how it ended: its log says why; the service tries again by itself."""


def listed(codes: Iterable[StrEnum]) -> str:
    """Return codes as a description names them."""
    return ", ".join(codes)
