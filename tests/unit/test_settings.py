"""Settings come from environment variables; a wrong one is named in a sentence."""

import base64
import re

import pytest

from service.apps import require_keys
from service.cli import main, read_settings
from service.errors import ConfigurationError
from service.settings import Settings
from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")


def on_the_page(table: str) -> list[str]:
    """Return the settings that a generated table of the page lists."""
    part = PAGE[PAGE.index(f"<!-- {table} -->") : PAGE.index(f"<!-- /{table} -->")]
    return re.findall(r"(?m)^\| `(\w+)` \|", part)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@host/db", "postgresql+asyncpg://u:p@host/db"),
        ("postgres://u:p@host/db", "postgresql+asyncpg://u:p@host/db"),
        ("postgresql+asyncpg://u@host/db", "postgresql+asyncpg://u@host/db"),
        ("sqlite:///file.db", "sqlite+aiosqlite:///file.db"),
        ("sqlite+aiosqlite:////abs/file.db", "sqlite+aiosqlite:////abs/file.db"),
    ],
)
def test_a_database_url_gets_its_asynchronous_driver(given: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs as platforms hand them out are accepted."""
    monkeypatch.setenv("DATABASE_URL", given)
    assert Settings().database_url == used


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HTTP_PORT=` in an environment file means the default, and `up` sees that the user chose nothing."""
    monkeypatch.setenv("HTTP_PORT", "")
    settings = Settings()
    assert settings.http_port == 8000
    assert "http_port" not in settings.model_fields_set


def test_every_setting_is_described() -> None:
    """Error sentences and docs/settings.md are made from the descriptions."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_page_has_every_setting_once() -> None:
    """In one of its two tables."""
    listed = [*on_the_page("settings"), *on_the_page("advanced")]
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields)


def test_what_no_deployment_sets_is_advanced() -> None:
    """A setting is advanced unless a line of deploy/ has its name; pages, comments and alerts set nothing."""
    found = [REPOSITORY / "deploy" / "Dockerfile"]
    for folder in ("compose", "kubernetes", "local"):
        found += (REPOSITORY / "deploy" / folder).rglob("*")
    own = {REPOSITORY / "deploy" / "compose" / name for name in (".env", "secrets")}  # of this machine
    files = [path for path in found if path.is_file() and path.suffix != ".md" and "monitoring" not in path.parts]
    lines = [
        line.partition("#")[0]
        for path in files
        if not own & {path, *path.parents}
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    named = [
        name.upper() for name in Settings.model_fields if any(re.search(rf"\b{name.upper()}\b", line) for line in lines)
    ]
    assert on_the_page("settings") == named


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTP_PORT", "abc"), ("HTTP_PORT", "70000"), ("PARTITIONS", "0"), ("SEND_RATE", "-1"), ("LOG_FORMAT", "xml")],
)
def test_a_wrong_setting_is_named_with_its_value_and_its_meaning(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says which variable, what is wrong, and what it is for."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert f"{name} is '{value}'" in caught.value.detail
    assert str(Settings.model_fields[name.lower()].description) in caught.value.detail


def test_a_wrong_setting_ends_the_command_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence on stderr, no traceback."""
    monkeypatch.setenv("HTTP_PORT", "abc")
    monkeypatch.setattr("sys.argv", ["whatsapp-qr", "ingress"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("whatsapp-qr: HTTP_PORT is 'abc'")


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("AMQP_URL", "localhost:5672", "write amqp://"),
        ("DATABASE_URL", "mysql://user:secret@host/x", "write postgresql://"),
        ("DATABASE_URL", "foo", "write postgresql://"),
    ],
)
def test_a_url_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, advice: str
) -> None:
    """A URL without a scheme that can be used is refused with what to write, and its password is not shown."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=advice) as refused:
        read_settings()
    assert variable in refused.value.detail
    assert "secret" not in refused.value.detail


# Keys and secrets

KEY, OTHER_KEY = "3f" * 24, "c0" * 24


def test_api_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces and an empty place do not matter; without the variable there are none."""
    assert Settings().api_keys == ()
    monkeypatch.setenv("API_KEYS", f" {KEY} , {OTHER_KEY},")
    assert [key.get_secret_value() for key in Settings().api_keys] == [KEY, OTHER_KEY]


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("API_KEYS", "sesame-sesame-1", "openssl rand -hex 24"),
        ("API_KEYS", f"{KEY},sesame", "openssl rand -hex 24"),
        ("API_KEYS", "sesame sesame sesame", "no spaces"),
        ("API_KEYS", "sesame-sesame-ñandú", "letters, digits"),
        ("API_KEYS", " , ,", "contains no key"),
        ("API_KEYS", " ", "contains no key"),
        ("WEBHOOK_TOKEN", "sesame", "openssl rand -hex 24"),
        ("WEBHOOK_TOKEN", "   ", "openssl rand -hex 24"),
        ("WEBHOOK_SECRET", "whsec_", "whsec_"),
        ("WEBHOOK_SECRET", "whsec_sesame", "at least 24 bytes"),
        ("WEBHOOK_SECRET", "whsec_sesamesesamesesamesesamesesames=", "at least 24 bytes"),
        ("WEBHOOK_SECRET", "sesamesesamesesamesesamesesamesesame", "whsec_"),
        ("WEBHOOK_SECRET", "whsec_sesame-sesame_sesamesesamesesamesesame", "base64"),
        ("WEBHOOK_SECRET", "whsec_sesamesesamesesamesesamesesamesesames", "base64"),
    ],
)
def test_a_weak_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, advice: str
) -> None:
    """The sentence says how to make a good one, and holds none that was given: it may be in a log."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=advice) as refused:
        read_settings()
    assert refused.value.detail.startswith(f"{variable} is not usable: ")
    for secret in ("sesame", KEY):
        assert secret not in refused.value.detail
        assert secret not in str(refused.value.__cause__)


def test_the_least_signing_secret_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 bytes, in the form that every library of Standard Webhooks makes."""
    secret = "whsec_" + base64.b64encode(b"x" * 24).decode()
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    given = Settings().webhook_secret
    assert given is not None
    assert given.get_secret_value() == secret


def test_settings_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever prints them."""
    secrets = {
        "API_KEYS": f"{KEY},{OTHER_KEY}",
        "WEBHOOK_TOKEN": "70" * 24,
        "WEBHOOK_SECRET": "whsec_" + "c2VjcmV0" * 5,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    shown = repr(settings) + str(settings) + settings.model_dump_json()
    assert not any(secret in shown for value in secrets.values() for secret in value.split(","))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "ingress.example"])  # noqa: S104  # that it is refused
@pytest.mark.parametrize("command", ["ingress", "up"])
def test_an_open_door_needs_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, host: str
) -> None:
    """Without API_KEYS nothing is started that other machines could call: a sentence and exit status 2."""
    monkeypatch.setenv("HTTP_HOST", host)
    monkeypatch.setattr("sys.argv", ["whatsapp-qr", command])
    monkeypatch.setattr("service.cli.serve", None)
    monkeypatch.setattr("service.local.up", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"whatsapp-qr: HTTP_HOST={host} lets other machines in")
    assert "openssl rand -hex 24" in said


@pytest.mark.parametrize(("host", "keys"), [("localhost", ""), ("127.0.0.2", ""), ("::1", ""), ("0.0.0.0", KEY)])  # noqa: S104
def test_a_closed_door_and_keys_are_enough(monkeypatch: pytest.MonkeyPatch, host: str, keys: str) -> None:
    """On loopback nothing has to be set; with keys every address will do."""
    monkeypatch.setenv("HTTP_HOST", host)
    monkeypatch.setenv("API_KEYS", keys)
    require_keys(read_settings())
