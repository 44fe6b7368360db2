"""Links chatbots to WhatsApp by QR code; no message is lost or doubled. Read it in the order of the data.

    REST, gateway ─> ingress ─┬─ whatsapp-qr.sessions ──────> consumers/session ──────> gateway /init /disconnect
                              └─ whatsapp-qr.conversations ─> consumers/conversation ─> incoming-messages ─> AI workers
    AI workers ─ message.send ────────────────┘                        │
                                                            whatsapp-qr-send ─> consumers/outbound ─> gateway /send

domain       decisions, without I/O
persistence  rows and transactions
messaging    RabbitMQ
gateway      the client of the WhatsApp gateway
singletons   jobs that one process runs at a time: they repair what redelivery cannot
operating    the operator's commands, for example for dead letters
metrics      the metrics for Prometheus
apps         the composition root: builds each process from `parts`
local        runs all processes on one machine
"""
