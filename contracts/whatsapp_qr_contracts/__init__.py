"""The public message contract of the WhatsApp QR service. Needs only pydantic.

commands  what you can ask for     -> whatsapp-qr.commands
events    what happened            <- whatsapp-qr.events
jobs      work for one worker      <- incoming-messages
gateway   what the gateway reports -> whatsapp-qr.gateway
"""
