"""Every code that the service gives as a reason: each with its condition and the remedy.

In messages they are plain strings, because a later version may have more, and a gateway may add its own. So compare
with these, and treat an unknown one like the others of its kind: a rejected command was not executed, a failed message
is not sent any more.
"""

from collections.abc import Iterable
from enum import StrEnum


class RejectionCode(StrEnum):
    """The `code` of `command.rejected`: why a command was not executed."""

    UNKNOWN_CHATBOT = "unknown_chatbot"
    """With CHATBOTS=strict a chatbot must be registered before its first session: send `chatbot.register` first."""
    NO_SESSION = "no_session"
    """The chatbot has no session: create one with `session.initialize`."""
    ID_REUSED = "id_reused"
    """Another command, or a message with other content, had this id: use a new id for a new one."""
    UNKNOWN_MESSAGE = "unknown_message"
    """The chatbot has no outgoing message with this `messageId`: take the id from its events."""
    NOT_PENDING = "not_pending"
    """The message to cancel is not waiting any more: it was sent, or it failed; there is nothing to do."""
    BEING_SENT = "being_sent"
    """An attempt to send the message to cancel is in progress: repeat the command in some seconds, with a new id."""
    NOT_FAILED = "not_failed"
    """The message to send again has not FAILED: there is nothing to do."""
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    """The session is connected here and the gateway did not accept the status call: try again later."""
    GATEWAY_ERROR = "gateway_error"
    """The session is connected here and the gateway did not report its status: try again later, or look at its log."""
    NOT_WANTED = "not_wanted"
    """A repair by the service itself came after the session was ended: there is nothing to do."""
    OUTDATED = "outdated"
    """A repair by the service itself came after the session had changed: there is nothing to do."""


class FailureCode(StrEnum):
    """The `errorCode` of a message that FAILED: the reason. A gateway may add its own."""

    EXPIRED = "expired"
    """It waited until its expiry: send it again with `message.retry`, if it is still useful."""
    CANCELLED = "cancelled"
    """It was cancelled while it waited, as requested."""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """No attempt got a clear answer, so it may have been sent: `message.retry` does not duplicate it at WhatsApp."""
    NUMBER_CHANGED = "number_changed"
    """Another number was linked while it waited: `message.retry` sends it from that one."""
    NOT_ON_WHATSAPP = "not_on_whatsapp"
    """The recipient has no WhatsApp account: correct the number."""
    RESTRICTED = "restricted"
    """WhatsApp restricts the account: send less for some days, then `message.retry`."""
    REFUSED = "refused"
    """The gateway refused it without its own code: `errorMessage` has the reason."""
    FAILED_BY_WHATSAPP = "failed_by_whatsapp"
    """WhatsApp reported that it did not arrive: `message.retry` sends it under a new WhatsApp id."""
    CHATBOT_REMOVED = "chatbot_removed"
    """The chatbot was removed before the message was stored: it was not sent and will not be."""


class DeadLetterReason(StrEnum):
    """Why a message could not be processed and became a dead letter."""

    MISSING_ID = "missing_id"
    """It has no AMQP `message_id` and its kind needs one: correct the sender, then publish it with an id."""
    UNKNOWN_TYPE = "unknown_type"
    """Its AMQP `type` is not a message of its queue: correct the sender."""
    UNKNOWN_VERSION = "unknown_version"
    """Its `schema-version` is newer than the service: update the service, then replay it."""
    INVALID_JSON = "invalid_json"
    """Its body is not JSON: correct the sender."""
    INVALID_MESSAGE = "invalid_message"
    """A field of its body is missing or wrong: `detail` names it; correct the sender."""
    INVALID_CALLBACK = "invalid_callback"
    """The gateway posted an invalid callback: `detail` names the field; correct the gateway, then replay it."""
    UNKNOWN_SESSION = "unknown_session"
    """The gateway reported on a session that the service does not have: check to which service that gateway belongs."""
    UNKNOWN_MESSAGE = "unknown_message"
    """A job to send names a message that the database does not have: check whether an older database was restored."""
    HANDLER_FAILED = "handler_failed"
    """Each attempt to handle it failed with an unexpected error: see the log; correct the cause, then replay it."""
    UNROUTABLE = "unroutable"
    """No queue was bound for its routing key: correct the sender, or declare the topology, then replay it."""
    UNREADABLE = "unreadable"
    """The dead letter's information on its origin cannot be read: its body is kept, and cannot be replayed."""
    MISROUTED = "misrouted"
    """It was rerouted once and is not at its partition yet: give all processes the same PARTITIONS, then replay it."""
    TOO_LARGE = "too_large"
    """Its body is over MAX_BODY_BYTES and is stored cut: correct the sender."""
    DELIVERY_LIMIT = "delivery_limit"
    """Its consumers ended too often before they acknowledged it: see their log; correct the cause, then replay it."""
    REJECTED = "rejected"
    """A consumer, for example an AI worker, rejected it without requeue: see that consumer's log."""
    EXPIRED = "expired"
    """It was on its queue until its AMQP expiration: replay it, if it is still useful."""
    MAXLEN = "maxlen"
    """Its queue has a length limit and was full: raise the limit, then replay it."""
    MOVED = "moved"
    """The broker moved it without a reason: look at its queue, then replay it."""


class StatusReason(StrEnum):
    """The `statusReason` of a session: why it has its status. A gateway may add its own."""

    REQUESTED = "requested"
    """The session was ended on request: `session.initialize` links it again."""
    CONNECTION_LOST = "connection_lost"
    """The gateway lost its connection: the service restores the link by itself."""
    LOGGED_OUT = "logged_out"
    """The phone's owner removed the link: `session.initialize` shows a new QR code."""
    REPLACED = "replaced"
    """Another client replaced the link: end that one, then `session.initialize`."""
    RESTRICTED = "restricted"
    """WhatsApp restricts the account: send less for some days."""
    ACTION_REQUIRED = "action_required"
    """The gateway reports a connection but sends nothing: open WhatsApp on the phone and follow its instructions."""
    QR_EXPIRED = "qr_expired"
    """The QR code was not scanned in time: `session.initialize` shows a new one."""
    NO_QR_CODE = "no_qr_code"
    """The gateway showed no QR code in time: the service starts the pairing again by itself."""
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    """The gateway did not accept the call: check whether it runs; the service tries again by itself."""
    GATEWAY_ERROR = "gateway_error"
    """The gateway refused the call or did not report its result: see its log; the service tries again by itself."""


def listed(codes: Iterable[StrEnum]) -> str:
    """Return codes as a text for a description."""
    return ", ".join(codes)
