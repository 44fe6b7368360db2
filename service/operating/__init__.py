"""What an operator does by hand, each a subcommand of `whatsapp-qr`: dead letters, single messages, and the broker."""
