"""What `whatsapp-qr up` starts on this machine."""

from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.local.programs import CONSUMERS, choose_programs
from service.settings import Settings

KEY, SECRET = "k" * 24, "whsec_" + "c2VjcmV0" * 5


def names(folder: Path, **settings: object) -> list[str]:
    """What is started beside a broker of the user's own."""
    chosen = Settings(amqp_url="amqp://broker/", **settings)  # type: ignore[arg-type]
    return [program.name for program in choose_programs(chosen, folder)]


def test_everything_is_started_but_what_the_user_brings(tmp_path: Path) -> None:
    """A gateway of the user's own stands in for the simulator, a worker of his own for the echo bot."""
    assert names(tmp_path) == ["simulator", "ingress", *CONSUMERS, "echo-bot"]
    assert names(tmp_path, whatsapp_qr_service_url="http://gateway:3001", echo_bot=False) == ["ingress", *CONSUMERS]


def test_callbacks_that_would_be_refused_are_a_sentence(tmp_path: Path) -> None:
    """On one outside address the simulator's calls come from there: without credentials no message would arrive."""
    with pytest.raises(ConfigurationError, match="WEBHOOK_SECRET"):
        names(tmp_path, http_host="192.0.2.1", api_keys=KEY)
    for host, more in (("192.0.2.1", {"webhook_secret": SECRET}), ("0.0.0.0", {}), ("127.0.0.1", {})):  # noqa: S104
        assert "simulator" in names(tmp_path, http_host=host, api_keys=KEY, **more)
