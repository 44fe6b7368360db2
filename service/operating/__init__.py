"""What an operator does by hand: dead letters and single messages, each a subcommand of `whatsapp-qr`."""
