"""The metrics of every process at /metrics. All names begin with `whatsapp_qr_`; times are in seconds.

Labels have few values: no id of a chatbot, a session or a message is ever one.
"""

import math

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from whatsapp_qr_contracts.codes import DeadLetterReason, FailureCode, StatusReason

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TRANSACTION_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 12)
_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 900, 3600, 21_600, 86_400)  # AMQP's timestamps are in whole seconds

REQUESTS = Counter(
    "whatsapp_qr_requests",
    "HTTP requests that the ingress answered; route none: refused before a route was found.",
    ["method", "route", "status"],
)
HANDLED = Counter(
    "whatsapp_qr_handled",
    "Messages that ended in this process: done, rerouted or dead_letter.",
    ["queue", "type", "outcome"],
)
DEAD_LETTERS = Counter(
    "whatsapp_qr_dead_letters",
    "Messages that became dead letters in this process, by the code of the reason.",
    ["reason"],
)
_DEAD_LETTER_REASONS = frozenset(DeadLetterReason)
HANDLING_SECONDS = Histogram(
    "whatsapp_qr_handling_seconds",
    "Time from the beginning of a message's handling to its end or to the next pause of a retry, with all attempts.",
    ["queue", "type"],
    buckets=_SECONDS,
)
MESSAGE_AGE = Histogram(
    "whatsapp_qr_message_age_seconds",
    "Age of a message when its handling begins, by the timestamp of its publisher.",
    ["queue"],
    buckets=_AGES,
)
HANDLER_ERRORS = Counter(
    "whatsapp_qr_handler_errors", "Attempts to handle a message that raised an unexpected error.", ["queue", "type"]
)
PUBLISHED = Counter(
    "whatsapp_qr_published",
    "Publishes by outcome: confirmed, refused (a queue is full), unroutable (no queue is bound) or failed (not "
    "confirmed; it may have arrived).",
    ["type", "outcome"],
)
RETRYING = Gauge("whatsapp_qr_retrying", "Operations that wait for the database or the broker at this moment.")
PARTITIONS_OWNED = Gauge(
    "whatsapp_qr_partitions_owned", "Partitions on which this process is the active consumer.", ["queue"]
)
SENDS = Counter(
    "whatsapp_qr_sends",
    "Attempts to send, by outcome: sent, retry, or the code under which the message failed.",
    ["outcome"],
)
_SEND_CODES = frozenset(FailureCode)
SENDING = Gauge("whatsapp_qr_sending", "Calls to the gateway that send a message at this moment.")
EVENTS_REFUSED = Counter(
    "whatsapp_qr_events_refused",
    "Events that a full queue refused at every attempt: its subscriber lacks them, the others have them.",
    ["type"],
)
RELAYING = Gauge(
    "whatsapp_qr_relaying",
    "1 while outputs for a destination wait in their rows: it is full, unavailable, or has just been taken over.",
    ["destination"],
)
RELAYED = Counter(
    "whatsapp_qr_relayed", "Outputs that were published from their rows, not right after the commit.", ["destination"]
)
REDRIVEN = Counter(
    "whatsapp_qr_redriven", "Repairs of the sweeper and the reconciler, by kind: normally zero.", ["kind"]
)
SINGLETON_JOB_HELD = Gauge(
    "whatsapp_qr_singleton_job_held", "1 if this process runs a singleton job.", ["singleton_job"]
)
SINGLETON_JOB_RUNS = Counter(
    "whatsapp_qr_singleton_job_runs",
    "Runs of singleton jobs, by outcome: done or failed.",
    ["singleton_job", "outcome"],
)
TRANSITIONS = Counter(
    "whatsapp_qr_session_transitions",
    "Changes of sessions by their new status and reason; reason other: one that is not in the contract.",
    ["status", "reason"],
)
_REASONS = frozenset(StatusReason)
GATEWAY_SECONDS = Histogram(
    "whatsapp_qr_gateway_seconds",
    "Calls to the gateway, by outcome: ok, unreachable (not accepted), unknown (possibly executed) or refused.",
    ["call", "outcome"],
    buckets=_SECONDS,
)
TRANSACTION_SECONDS = Histogram(
    "whatsapp_qr_transaction_seconds",
    "Transactions from their turn to the commit, failed ones included.",
    ["kind"],
    buckets=_TRANSACTION_SECONDS,
)
BUILD_INFO = Gauge("whatsapp_qr_build_info", "Always 1, with version and role of this process.", ["version", "role"])
SESSIONS = Gauge("whatsapp_qr_sessions", "Sessions by status (from the database).", ["status"])
OLDEST_PENDING = Gauge(
    "whatsapp_qr_oldest_pending_seconds",
    "Age of the oldest message that waits to be sent, by whether its session is connected or away (from the database).",
    ["session"],
)
OLDEST_UNHANDLED = Gauge(
    "whatsapp_qr_oldest_unhandled_seconds",
    "Age of the oldest customer's message whose job is not known to be confirmed (from the database).",
)
STORED_DEAD_LETTERS = Gauge(
    "whatsapp_qr_stored_dead_letters", "Dead letters in the table that were not replayed, by reason.", ["reason"]
)

# A process that does not read the database has no value.
OLDEST_UNHANDLED.set(math.nan)

CONTENT_TYPE = CONTENT_TYPE_LATEST


def send_code(code: str) -> str:
    """Return the code of a failed send as a label: a gateway may invent codes, and each would be a new series."""
    return code if code in _SEND_CODES else "refused"


def dead_letter_reason(reason: str) -> str:
    """Return the reason of a dead letter as a label: any publisher of dead letters may invent reasons."""
    return reason if reason in _DEAD_LETTER_REASONS else "other"


def transition_reason(reason: str | None) -> str:
    """Return the reason of a session's change as a label: a gateway may invent reasons."""
    if not reason:
        return ""
    return reason if reason in _REASONS else "other"


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus' text format."""
    return generate_latest()
