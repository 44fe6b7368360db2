"""The public message contract of the WhatsApp QR service. Needs only pydantic.

commands      requests to the service          -> whatsapp-qr.commands
events        facts about the past             <- whatsapp-qr.events
jobs          work for one worker              <- incoming-messages
gateway       reports of the gateway           -> whatsapp-qr.gateway
catalogue     all messages
codes         every reason that is given as a code
gateway_http  the gateway's own HTTP interface
client        publishes and consumes them with aio-pika; needs the extra `client`
"""
