"""A WhatsApp gateway that needs no phone: the gateway's HTTP contract, with simulated phones behind it.

app        builds it: simulator_app()
contract   the gateway's endpoints (/init, /send, …)        ─┐
control    /simulator/…: control phones, customers, faults   ├─> phones, chats ─> store ─> callbacks ─> the ingress
pairing    shows QR codes and renews them                   ─┘
"""
