"""Settings from files: a folder of secrets as orchestrators mount it."""

from pathlib import Path

import pytest

from service.cli import read_settings
from service.errors import ConfigurationError
from service.settings import Settings

MARK = "a-marked-secret-0123456789"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of secrets; no variable but SECRETS_DIR is set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(folder))
    return folder


def test_a_file_is_a_setting(secrets: Path) -> None:
    """The end of its line is no part of it, and the user has chosen it: `up` starts no broker of its own."""
    (secrets / "AMQP_URL").write_text("amqp://u:p@broker/\n")
    (secrets / "PARTITIONS").write_text("7\n")
    settings = Settings()
    assert (settings.amqp_url, settings.partitions) == ("amqp://u:p@broker/", 7)
    assert {"amqp_url", "partitions"} <= settings.model_fields_set


def test_a_variable_wins_over_its_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets one for a single run means it; one that is set to nothing counts as unset."""
    (secrets / "DATABASE_URL").write_text("postgresql://file/db")
    monkeypatch.setenv("DATABASE_URL", "postgresql://variable/db")
    assert Settings().database_url == "postgresql+asyncpg://variable/db"
    monkeypatch.setenv("DATABASE_URL", "")
    assert Settings().database_url == "postgresql+asyncpg://file/db"


def test_a_wrong_variable_is_not_taken_for_its_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the sentence looks in the right place."""
    (secrets / "HTTP_PORT").write_text("8000")
    monkeypatch.setenv("HTTP_PORT", "abc")
    with pytest.raises(ConfigurationError, match="HTTP_PORT is 'abc'"):
        read_settings()


def test_files_may_be_links_as_kubernetes_makes_them(secrets: Path) -> None:
    """A mounted Secret is a folder of links to links, which change all at once."""
    (secrets / "..2026_11_22").mkdir()
    (secrets / "..2026_11_22" / "WEBHOOK_TOKEN").write_text(MARK)
    (secrets / "..data").symlink_to("..2026_11_22")
    (secrets / "WEBHOOK_TOKEN").symlink_to(Path("..data") / "WEBHOOK_TOKEN")
    token = Settings().webhook_token
    assert token is not None
    assert token.get_secret_value() == MARK


def test_keys_may_stand_on_lines(secrets: Path) -> None:
    """A file with one key per line is what people write."""
    (secrets / "API_KEYS").write_text(f"{MARK}1\n{MARK}2, {MARK}3\n\n")
    assert [key.get_secret_value() for key in Settings().api_keys] == [f"{MARK}{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_counts_as_unset(secrets: Path, text: str) -> None:
    """As an empty variable does."""
    (secrets / "WEBHOOK_TOKEN").write_text(text)
    (secrets / "PARTITIONS").write_text(text)
    settings = Settings()
    assert (settings.webhook_token, settings.partitions) == (None, 4)


def test_other_files_are_nothing_to_us(secrets: Path) -> None:
    """A folder may hold what others read, and a name in small letters is another name."""
    (secrets / "username").write_text("whatsapp-qr-ingress")
    (secrets / "partitions").write_text("9")
    assert Settings().partitions == 4


def test_a_missing_folder_is_named(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on without it would mean to run with defaults: with guest, without keys."""
    monkeypatch.setenv("SECRETS_DIR", str(secrets / "none"))
    with pytest.raises(ConfigurationError, match=r"SECRETS_DIR is .*none', and there is no such folder"):
        read_settings()


@pytest.mark.parametrize("name", ["AMQP_URL", "DATABASE_URL", "API_KEYS", "WEBHOOK_SECRET", "HTTP_PORT", "LOG_FORMAT"])
def test_a_wrong_file_is_named_without_what_it_holds(secrets: Path, name: str) -> None:
    """Who looks at the log of a pod that does not start must not find its secrets there, whatever was mixed up."""
    (secrets / name).write_text(f"{MARK} {MARK}")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert f"{name} (the file {secrets / name}) is not usable: " in caught.value.detail
    assert MARK not in caught.value.detail


@pytest.mark.parametrize("kind", ["bytes", "folder"])
def test_a_file_that_cannot_be_read_is_named(secrets: Path, kind: str) -> None:
    """One sentence, no traceback; what it holds stays out."""
    if kind == "bytes":
        (secrets / "AMQP_URL").write_bytes(b"\xff\xfe" + MARK.encode("utf-16"))
    else:
        (secrets / "AMQP_URL").mkdir()
    with pytest.raises(ConfigurationError, match="AMQP_URL cannot be read: ") as caught:
        read_settings()
    assert MARK not in caught.value.detail
