"""What every process tells Prometheus at /metrics. All names begin with `whatsapp_qr_`; times are in seconds.

Labels have few values: no id of a chatbot, a session or a message is ever one.
"""

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

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
ACTIVE_DRAINS = Gauge("whatsapp_qr_active_drains", "Lanes that are being sent from at this moment.")
REDRIVEN = Counter(
    "whatsapp_qr_redriven", "What the sweeper and the reconciler mended, by kind: zero while all is well.", ["kind"]
)
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

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """Return all metrics of this process in Prometheus' text format."""
    return generate_latest()
