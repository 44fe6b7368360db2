"""The public message contract of the WhatsApp QR service. Needs only pydantic.

commands      what you can ask for             -> whatsapp-qr.commands
events        what happened                    <- whatsapp-qr.events
jobs          work for one worker              <- incoming-messages
gateway       what the gateway reports         -> whatsapp-qr.gateway
catalogue     all messages
codes         every reason that is given as a code
gateway_http  what the gateway is asked, by HTTP
client        sends and follows all that over aio-pika; needs the extra `client`
"""
