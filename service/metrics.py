"""What every process tells Prometheus at /metrics. All names begin with `whatsapp_qr_`; times are in seconds.

Labels have few values: no id of a chatbot, a session or a message is ever one.
"""

import math

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

REQUESTS = Counter(
    "whatsapp_qr_requests",
    "HTTP requests that the ingress answered; route none: refused before one was found.",
    ["method", "route", "status"],
)
HANDLED = Counter(
    "whatsapp_qr_handled",
    "Messages that ended in this process: done, passed_on or dead_letter.",
    ["queue", "type", "outcome"],
)
DEAD_LETTERS = Counter(
    "whatsapp_qr_dead_letters", "Messages that this process gave up for good, by the code of the reason.", ["reason"]
)
HELD = Gauge("whatsapp_qr_held", "Operations that wait for the database or the broker at this moment.")
PARTITIONS_OWNED = Gauge(
    "whatsapp_qr_partitions_owned", "Partitions on which this process is the active consumer.", ["queue"]
)
SENDS = Counter(
    "whatsapp_qr_sends",
    "Attempts to send, by outcome: sent, retry, or the code under which the message failed.",
    ["outcome"],
)
_SEND_CODES = frozenset({"outcome_unknown", "refused", "not_on_whatsapp", "restricted", "expired"})
ACTIVE_DRAINS = Gauge("whatsapp_qr_active_drains", "Lanes that are being sent from at this moment.")
REDRIVEN = Counter(
    "whatsapp_qr_redriven", "What the sweeper and the reconciler mended, by kind: zero while all is well.", ["kind"]
)
DUTY_HELD = Gauge("whatsapp_qr_duty_held", "1 where this process does a duty that one alone does at a time.", ["duty"])
DUTY_RUNS = Counter("whatsapp_qr_duty_runs", "Runs of such duties, by outcome: done or failed.", ["duty", "outcome"])
SESSIONS = Gauge("whatsapp_qr_sessions", "Sessions by status (from the database).", ["status"])
OLDEST_PENDING = Gauge(
    "whatsapp_qr_oldest_pending_seconds", "Age of the oldest message that waits to be sent (from the database)."
)
OLDEST_UNHANDLED = Gauge(
    "whatsapp_qr_oldest_unhandled_seconds",
    "Age of the oldest customer's message that is not known to be handed over (from the database).",
)
STORED_DEAD_LETTERS = Gauge(
    "whatsapp_qr_stored_dead_letters", "Dead letters in the table that were not replayed, by reason.", ["reason"]
)

# A process that does not ask the database has nothing to say.
OLDEST_PENDING.set(math.nan)
OLDEST_UNHANDLED.set(math.nan)

CONTENT_TYPE = CONTENT_TYPE_LATEST


def send_code(code: str) -> str:
    """Return the code of a failed send as a label: a gateway may invent codes, and each would be a new series."""
    return code if code in _SEND_CODES else "refused"


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus' text format."""
    return generate_latest()
