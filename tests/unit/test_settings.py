"""Settings come from environment variables; a wrong one is named in a sentence."""

import pytest

from service.cli import main, read_settings
from service.errors import ConfigurationError
from service.settings import Settings


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
    """Error sentences and the README are made from the descriptions."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


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
