"""Links chatbots to WhatsApp by QR code; no message is lost or doubled. Read it in the order of the data.

    REST, gateway ─> ingress ─┬─ whatsapp-qr.sessions ──────> consumers/session ──────> gateway /init /disconnect
                              └─ whatsapp-qr.conversations ─> consumers/conversation ─> incoming-messages ─> AI workers
    AI workers ─ message.send ────────────────┘                        │
                                                            whatsapp-qr-send ─> consumers/outbound ─> gateway /send

domain decides (pure), persistence remembers, messaging knows RabbitMQ, gateway knows the WhatsApp gateway, upkeep
mends what redelivery cannot, operating is what people do with dead letters, metrics tell Prometheus, apps puts the
processes together from parts, local runs them all on one machine.
"""
