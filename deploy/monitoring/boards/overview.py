"""Whether customers and callers get what they expect."""

from deploy.monitoring.boards.queries import IN, quantile, rate, stat
from deploy.monitoring.panels import Board, Panel, Row

_NOW = Row(
    "Now",
    [
        stat(
            "Alerts",
            "Alerts of this service that fire. Each has a page in docs/runbook.",
            f'count(ALERTS{{alertname=~"WhatsappQr.+", alertstate="firing", {IN}}}) or vector(0)',
            bad_from=1,
        ),
        stat(
            "Connected sessions",
            "Chatbots whose WhatsApp account is linked. Empty: the database is away.",
            f'max(whatsapp_qr_sessions{{status="CONNECTED", {IN}}})',
        ),
        stat(
            "Oldest message to send",
            "How long a message has been waiting whose session is connected. The others are on Send pipeline.",
            f'max(whatsapp_qr_oldest_pending_seconds{{session="connected", {IN}}})',
            unit="s",
            bad_from=900,
        ),
        stat(
            "Oldest message not handed over",
            "How long a customer's message has been waiting to be given to the AI workers. Normal: 0.",
            f"max(whatsapp_qr_oldest_unhandled_seconds{{{IN}}})",
            unit="s",
            bad_from=120,
        ),
        stat(
            "Dead letters",
            "Messages that were given up and wait for somebody to decide. Normal: 0.",
            f"sum(max by (namespace, reason) (whatsapp_qr_stored_dead_letters{{{IN}}})) or vector(0)",
            bad_from=1,
        ),
        stat(
            "Operations held",
            "Work that waits for the database or the broker at this moment. Normal: 0.",
            f"sum(whatsapp_qr_retrying{{{IN}}})",
            bad_from=1,
        ),
    ],
)

BOARD = Board(
    "overview",
    "WhatsApp QR / Overview",
    "Whether customers and callers get what they expect, and where to look if not.",
    "whatsapp_qr_build_info",
    [
        _NOW,
        Row(
            "Traffic",
            [
                Panel(
                    "Messages",
                    "Messages from customers that were handled, and messages to customers that WhatsApp has taken.",
                    "cps",
                    [
                        (
                            rate("whatsapp_qr_handled_total", "type", 'type="gateway.message"', 'outcome="done"'),
                            "received",
                        ),
                        (rate("whatsapp_qr_sends_total", "outcome", 'outcome="sent"'), "sent"),
                    ],
                ),
                Panel(
                    "HTTP requests",
                    "What the ingress answers, by status. 503: broker or database were away; 4xx: the caller's.",
                    "reqps",
                    [(rate("whatsapp_qr_requests_total", "status"), "{{status}}")],
                ),
                Panel(
                    "Handled messages",
                    "Messages that ended, by queue and outcome. Dead letters should be rare; passed on are those that "
                    "came without their partition.",
                    "cps",
                    [(rate("whatsapp_qr_handled_total", "queue, outcome"), "{{queue}} {{outcome}}")],
                ),
            ],
        ),
        Row(
            "Delay and errors",
            [
                Panel(
                    "Age of messages (p95)",
                    "How old messages are when their turn comes. Above 60 s for 10 minutes is an alert.",
                    "s",
                    [(quantile(0.95, "whatsapp_qr_message_age_seconds", "queue"), "{{queue}}")],
                ),
                Panel(
                    "Time per message (p95)",
                    "How long handlers take. Sending includes the gateway.",
                    "s",
                    [(quantile(0.95, "whatsapp_qr_handling_seconds", "queue"), "{{queue}}")],
                ),
                Panel(
                    "Errors",
                    "Unforeseen errors, messages given up, publishes that failed, what was mended. Normal: 0.",
                    "cps",
                    [
                        (rate("whatsapp_qr_handler_errors_total", "queue"), "handler {{queue}}"),
                        (rate("whatsapp_qr_dead_letters_total", "reason"), "dead letter {{reason}}"),
                        (
                            rate("whatsapp_qr_published_total", "outcome", 'outcome!="confirmed"'),
                            "publish {{outcome}}",
                        ),
                        (rate("whatsapp_qr_redriven_total", "kind"), "mended {{kind}}"),
                    ],
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Panel(
                    "Processes",
                    "How many of each role run, by version: two versions while one is rolled out.",
                    "short",
                    [(f"count by (role, version) (whatsapp_qr_build_info{{{IN}}})", "{{role}} {{version}}")],
                ),
                Panel(
                    "Partitions worked on",
                    "Per queue. Normal: PARTITIONS (4). Fewer: some chatbots stand still.",
                    "short",
                    [(f"sum by (queue) (whatsapp_qr_partitions_owned{{{IN}}})", "{{queue}}")],
                ),
                Panel(
                    "Database transactions (p95)",
                    "From the wait for a connection to the commit. Seconds mean that the pool or the database is full.",
                    "s",
                    [(quantile(0.95, "whatsapp_qr_transaction_seconds", "kind"), "{{kind}}")],
                ),
            ],
        ),
    ],
)
