"""Links chatbots to WhatsApp by QR code; no message is lost or doubled. Read the packages in the order of this list.

    REST, gateway ─> ingress ─┬─ whatsapp-qr.sessions ──────> consumers/session ──────> gateway /init /disconnect
                              └─ whatsapp-qr.conversations ─> consumers/conversation ─> incoming-messages ─> AI workers
    AI workers ─ message.send ────────────────┘                        │
                                                            whatsapp-qr-send ─> consumers/outbound ─> gateway /send

ingress      REST calls become commands, gateway callbacks become reports, reads go to the database
consumers    the three consumers: session, conversation, outbound
domain       decisions, without I/O
persistence  rows and transactions
messaging    RabbitMQ
gateway      the client of the WhatsApp gateway
singletons   jobs that one process runs at a time: they repair what redelivery cannot
operating    the operator's commands, for example for dead letters
simulator    a gateway with the same HTTP contract, without WhatsApp
local        runs all processes on one machine
apps, parts  the composition root: puts each process together
cli          the command `whatsapp-qr`

Each of the other modules of this folder has one task for all processes, such as settings, logs, metrics and tracing.
"""
