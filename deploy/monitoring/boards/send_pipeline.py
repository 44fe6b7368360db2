"""What happens to a message between the caller and WhatsApp."""

from deploy.monitoring.boards.queries import IN, RATE, quantile, rate
from deploy.monitoring.panels import Board, Panel, Row

_FAILED = 'sum(rate(whatsapp_qr_sends_total{outcome=~"outcome_unknown|refused|restricted|expired", ' + f"{IN}}}{RATE}))"
_ENDED = f'sum(rate(whatsapp_qr_sends_total{{outcome!~"retry|not_on_whatsapp", {IN}}}{RATE}))'

BOARD = Board(
    "send-pipeline",
    "WhatsApp QR / Send pipeline",
    "What happens to a message between the caller and WhatsApp.",
    "whatsapp_qr_build_info",
    [
        Row(
            "Outcome",
            [
                Panel(
                    "Attempts by outcome",
                    "sent is good; retry is tried again; everything else is the code under which a message failed.",
                    "cps",
                    [(rate("whatsapp_qr_sends_total", "outcome"), "{{outcome}}")],
                ),
                Panel(
                    "Share that fails",
                    "Of the messages that ended, without numbers that have no WhatsApp. Above a tenth is an alert.",
                    "percentunit",
                    [(f"{_FAILED} / {_ENDED}", "failed")],
                ),
                Panel(
                    "Oldest message to send",
                    "connected: it could go out now; above 900 s is an alert. away: it waits for its session, in a "
                    "straight line until somebody scans or it expires.",
                    "s",
                    [(f"max by (session) (whatsapp_qr_oldest_pending_seconds{{{IN}}})", "{{session}}")],
                ),
            ],
        ),
        Row(
            "On the way",
            [
                Panel(
                    "Commands and jobs",
                    "Messages that were accepted, and the jobs that wake their lanes.",
                    "cps",
                    [
                        (
                            rate("whatsapp_qr_handled_total", "type", 'type="message.send"', 'outcome="done"'),
                            "accepted",
                        ),
                        (
                            rate("whatsapp_qr_handled_total", "type", 'queue="whatsapp-qr-send"', 'outcome="done"'),
                            "jobs",
                        ),
                    ],
                ),
                Panel(
                    "On their way",
                    "Messages that the gateway is being given at this moment, one of each session at most.",
                    "short",
                    [(f"sum(whatsapp_qr_sending{{{IN}}})", "messages")],
                ),
                Panel(
                    "Forgotten lanes",
                    "Lanes that the sweeper woke. Normal: 0.",
                    "cps",
                    [(rate("whatsapp_qr_redriven_total", "kind", 'kind="pending"'), "{{kind}}")],
                ),
                Panel(
                    "Published from the rows",
                    "Jobs and events that were not confirmed right after the commit, by destination. Normal: 0.",
                    "cps",
                    [(rate("whatsapp_qr_relayed_total", "destination"), "{{destination}}")],
                ),
            ],
        ),
        Row(
            "Gateway",
            [
                Panel(
                    "Sends by outcome",
                    "Calls of the gateway's /send. unknown is what may have been sent although nobody said so; where "
                    "all are, the gateway hangs.",
                    "cps",
                    [(rate("whatsapp_qr_gateway_seconds_count", "outcome", 'call="send"'), "{{outcome}}")],
                ),
                Panel(
                    "Time of a send",
                    "The gateway's /send, of which a session makes one at a time.",
                    "s",
                    [
                        (quantile(0.5, "whatsapp_qr_gateway_seconds", "call", 'call="send"'), "p50"),
                        (quantile(0.95, "whatsapp_qr_gateway_seconds", "call", 'call="send"'), "p95"),
                    ],
                ),
                Panel(
                    "Age of jobs (p95)",
                    "How long a job waits for its consumer.",
                    "s",
                    [(quantile(0.95, "whatsapp_qr_message_age_seconds", "queue", 'queue="whatsapp-qr-send"'), "jobs")],
                ),
            ],
        ),
    ],
)
