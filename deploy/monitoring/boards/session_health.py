"""Whether chatbots are linked and stay linked."""

from deploy.monitoring.boards.queries import IN, quantile, rate
from deploy.monitoring.panels import Board, Panel, Row

BOARD = Board(
    "session-health",
    "WhatsApp QR / Session health",
    "Whether chatbots are linked and stay linked.",
    "whatsapp_qr_build_info",
    [
        Row(
            "Sessions",
            [
                Panel(
                    "Sessions by status",
                    "From the database. QR_READY waits for somebody to scan; CONNECTING should last seconds.",
                    "short",
                    [(f"max by (status) (whatsapp_qr_sessions{{{IN}}})", "{{status}}")],
                ),
                Panel(
                    "Changes",
                    "Changes of sessions, by the status they led to.",
                    "cps",
                    [(rate("whatsapp_qr_session_transitions_total", "status"), "{{status}}")],
                ),
                Panel(
                    "Why sessions ended",
                    "logged_out and replaced need a new QR code; gateway_unreachable and connection_lost heal.",
                    "cps",
                    [
                        (
                            rate("whatsapp_qr_session_transitions_total", "reason", 'status="DISCONNECTED"'),
                            "{{reason}}",
                        )
                    ],
                ),
            ],
        ),
        Row(
            "Gateway",
            [
                Panel(
                    "Calls by outcome",
                    "unreachable: nobody answers; unknown: whether it was done is not known; refused: it said no.",
                    "cps",
                    [(rate("whatsapp_qr_gateway_seconds_count", "call, outcome"), "{{call}} {{outcome}}")],
                ),
                Panel(
                    "Time of calls (p95)",
                    "init opens a session, sessions is the reconciler's question once a minute.",
                    "s",
                    [(quantile(0.95, "whatsapp_qr_gateway_seconds", "call"), "{{call}}")],
                ),
                Panel(
                    "Repaired sessions",
                    "Sessions that differed from what the gateway says. Some after a restart of the gateway; else 0.",
                    "cps",
                    [(rate("whatsapp_qr_redriven_total", "kind", 'kind=~"session_.+"'), "{{kind}}")],
                ),
            ],
        ),
        Row(
            "Session consumer",
            [
                Panel(
                    "Age of session messages",
                    "What a user who waits for a QR code waits before anything begins.",
                    "s",
                    [
                        (
                            quantile(0.5, "whatsapp_qr_message_age_seconds", "queue", 'queue="whatsapp-qr.sessions"'),
                            "p50",
                        ),
                        (
                            quantile(0.95, "whatsapp_qr_message_age_seconds", "queue", 'queue="whatsapp-qr.sessions"'),
                            "p95",
                        ),
                    ],
                ),
                Panel(
                    "Time per message (p95)",
                    "By kind. Initialize includes the gateway's /init, at most 8 s.",
                    "s",
                    [
                        (
                            quantile(0.95, "whatsapp_qr_handling_seconds", "type", 'queue="whatsapp-qr.sessions"'),
                            "{{type}}",
                        )
                    ],
                ),
                Panel(
                    "Singleton jobs",
                    "Runs of sweeper, reconciler and dead-letter store. Where they fail nothing is mended.",
                    "cps",
                    [
                        (
                            rate("whatsapp_qr_singleton_job_runs_total", "singleton_job, outcome"),
                            "{{singleton_job}} {{outcome}}",
                        )
                    ],
                ),
                Panel(
                    "Which process runs the singleton jobs",
                    "How many processes do each. Normal: 1. Where it is 0 nothing is mended.",
                    "short",
                    [(f"sum by (singleton_job) (whatsapp_qr_singleton_job_held{{{IN}}})", "{{singleton_job}}")],
                ),
            ],
        ),
    ],
)
