"""Who may do what on the broker, written down by hand: what `rights` derives from the topology has to agree."""

COMMANDS, GATEWAY, EVENTS, JOBS, DEAD_LETTERS = (
    f"whatsapp-qr.{name}" for name in ("commands", "gateway", "events", "jobs", "dead-letters")
)
EXCHANGES = {COMMANDS, GATEWAY, EVENTS, JOBS, DEAD_LETTERS}
SESSIONS = {f"whatsapp-qr.sessions{end}" for end in ("", ".1", ".63", ".entry")}
CONVERSATIONS = {f"whatsapp-qr.conversations{end}" for end in ("", ".1", ".63", ".entry")}
SENDS = {"whatsapp-qr-send", "whatsapp-qr-send.1", "whatsapp-qr-send.63"}
INCOMING = "incoming-messages"
OWN = "whatsapp-qr.ingress.0198c1f4"
SUBSCRIBERS = "event-subscriber.orders"
EVERYTHING = EXCHANGES | SESSIONS | CONVERSATIONS | SENDS | {INCOMING}
# Names that look like ours, what RabbitMQ calls the default exchange when it asks for rights, and foreign ones.
FOREIGN = {
    "amq.default",
    "amq.topic",
    "amq.gen-JzTY20BRgKO",
    "somebody-else",
    *(f"{name}X" for name in EVERYTHING - {INCOMING}),
    *(f"X{name}" for name in EVERYTHING),
    *(name.replace(".", "-") for name in EVERYTHING if "." in name),
    "whatsapp-qr.sessions.",
    "whatsapp-qr.sessions.one",
    "whatsapp-qr.sessions.1.2",
    "whatsapp-qr.sessions.1.entry",
    "whatsapp-qr-send.entry",
    "whatsapp-qr.ingress",
    "whatsapp-qr-ingress.x",
    "incoming-messages.1",
    "event-subscriber",
    "event-subscribers.orders",
}
NAMES = EVERYTHING | FOREIGN | {OWN, SUBSCRIBERS}

NOTHING: set[str] = set()
# By user: what it may configure, write to, read from. Everything else is refused.
ALLOWED: dict[str, tuple[set[str], set[str], set[str]]] = {
    "whatsapp-qr-ingress": ({OWN}, {COMMANDS, GATEWAY, DEAD_LETTERS, OWN}, {EVENTS, OWN}),
    "whatsapp-qr-session-consumer": (NOTHING, EXCHANGES - {DEAD_LETTERS}, SESSIONS | {DEAD_LETTERS}),
    "whatsapp-qr-conversation-consumer": (NOTHING, EXCHANGES - {DEAD_LETTERS}, CONVERSATIONS),
    "whatsapp-qr-outbound-consumer": (NOTHING, {EVENTS, JOBS}, SENDS),
    "whatsapp-qr-topology": (EVERYTHING, EVERYTHING, EVERYTHING),
    "whatsapp-qr-operator": (NOTHING, {COMMANDS, GATEWAY, JOBS}, NOTHING),
    "whatsapp-qr-keda": (NOTHING, NOTHING, NOTHING),
    "ai-worker": (NOTHING, {COMMANDS}, {INCOMING}),
    "event-subscriber": ({SUBSCRIBERS}, {SUBSCRIBERS}, {EVENTS, SUBSCRIBERS}),
}
