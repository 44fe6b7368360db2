"""The printed output of a run."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.local.programs import Program
    from service.settings import Settings

_CHATBOT = "6f9619ff-8b86-4011-b42d-00c04fc964ff"


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def say_what_runs(settings: "Settings", programs: "list[Program]", seconds: float) -> None:
    """Print the addresses of all parts, and the next commands to type."""
    places = {program.name: program.url if program.port else "" for program in programs}
    places["ingress"] += "   (API documentation: /docs)"
    places["rabbitmq"] = settings.amqp_url if "rabbitmq" in places else _without_password(settings.amqp_url)
    if "simulator" not in places:
        places["gateway"] = _without_password(settings.whatsapp_qr_service_url)
    if "echo-bot" in places:
        places["echo-bot"] = "answers every customer with the customer's own text   (ECHO_BOT=off disables it)"
    places |= {"database": _without_password(settings.database_url), "logs": ".local/log/"}
    say(f"Ready after {seconds:.0f} s; Ctrl-C stops everything.")
    for name, place in places.items():
        say(f"  {name:22} {place}")
    say("Try it in a second terminal: link a chatbot, scan its QR code, write as a customer.")
    for command in _commands({program.name: program.url for program in programs}, with_key=bool(settings.api_keys)):
        say(f"  {command}")
    if "echo-bot" not in places:
        say(f"Customers are answered once your worker runs, with AMQP_URL={places['rabbitmq']}")


def _commands(urls: dict[str, str], *, with_key: bool) -> list[str]:
    first = ["KEY=<one of API_KEYS>"] if with_key else []
    key = ' -H "X-API-Key: $KEY"' if with_key else ""
    api = f"{urls['ingress']}/whatsapp-qr"
    link = f"""SESSION=$(curl -fsS{key} {api}/init --json '{{"chatbotId": "{_CHATBOT}"}}' | grep -o 'session_[^"]*')"""
    if "simulator" not in urls:
        show = f"curl{key} {api}/qr-code/$SESSION   # a PNG as a data URL: open it in a browser and scan it"
        return [*first, link, show, f"curl{key} {api}/status/$SESSION"]
    phone = f"{urls['simulator']}/simulator/sessions/$SESSION"
    scan = f"""curl "{phone}/scan?wait=10" --json '{{"phoneNumber": "5491100000000"}}'"""
    ask = f"""curl "{phone}/customers?wait=10" --json '{{"from": "5491112345678", "message": "Hola"}}'"""
    return [*first, link, scan, ask]


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):.*@", r"://\1:***@", url)
