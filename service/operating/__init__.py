"""The operator's subcommands of `whatsapp-qr`: dead letters, single messages, and the broker."""
