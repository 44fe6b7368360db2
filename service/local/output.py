"""What a run prints."""

import re

from service.local.programs import Program
from service.settings import Settings


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def say_what_runs(settings: Settings, programs: list[Program], seconds: float) -> None:
    """Print where everything answers."""
    places = {program.name: program.url for program in programs}
    places["ingress"] += "   (API documentation: /docs)"
    places["rabbitmq"] = settings.amqp_url if "rabbitmq" in places else _without_password(settings.amqp_url)
    if "simulator" not in places:
        places["gateway"] = _without_password(settings.whatsapp_qr_service_url)
    places |= {"database": _without_password(settings.database_url), "logs": ".local/log/"}
    say(f"Ready after {seconds:.0f} s; Ctrl-C stops everything.")
    for name, place in places.items():
        say(f"  {name:22} {place}")


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):[^/@]*@", r"://\1:***@", url)
