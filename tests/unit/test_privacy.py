"""What logs and traces may show of ids, numbers, codes and errors."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest
import structlog
from pydantic import BaseModel, ValidationError

from service import logs, privacy
from service.errors import DatabaseUnavailable

NUMBER = "5491112345678"
OURS = ("6f9619ff-8b86-4011-b42d-00c04fc964ff", "session_6f9619ff-8b86-4011-b42d-00c04fc964ff_1767268800000")


@pytest.fixture(autouse=True)
def _key() -> Iterator[None]:
    privacy.configure("a key of this test")
    yield
    privacy.configure(None)


@pytest.mark.parametrize("identifier", [*OURS, "order-1234-shipped", "", OURS[0].replace("-", "")])
def test_ids_are_shown(identifier: str) -> None:
    """Ours, and those of others that hold no number."""
    assert privacy.shown(identifier) == identifier


@pytest.mark.parametrize(
    "identifier", [NUMBER, f"+{NUMBER}", "bot 549 11 1234-5678", f"{NUMBER}@s.whatsapp.net", f"{OURS[1]}-{NUMBER}"]
)
def test_what_may_be_a_number_is_hashed(identifier: str) -> None:
    """However it is written, as whose id it ever serves."""
    shown = privacy.shown(identifier)
    assert shown.startswith("hash:")
    assert not any(digits in shown for digits in ("1112345678", "1234-5678"))


def test_a_number_has_one_hash_under_one_key() -> None:
    """12 hexadecimal digits, the same for all ways to write it; others under another key."""
    hashes = {privacy.hashed(way) for way in (NUMBER, f"+{NUMBER}", f"{NUMBER}:3@s.whatsapp.net")}
    (one,) = hashes
    assert len(one) == 12
    assert int(one, 16)
    privacy.configure("another key, of this test too")
    assert privacy.hashed(NUMBER) != one
    privacy.configure(None)
    assert privacy.hashed(NUMBER) != one


@pytest.mark.parametrize(("code", "shown"), [("not_on_whatsapp", "not_on_whatsapp"), ("Hello you", "unknown")])
def test_a_code_of_the_gateway_is_shown_where_it_is_one(code: str, shown: str) -> None:
    """Anything else that it puts there is not."""
    assert privacy.shown_code(code) == shown


class Number(BaseModel):
    number: int


def _raise(kind: str) -> None:
    if kind == "pydantic":
        Number.model_validate({"number": NUMBER + "x"})
    if kind == "cause":
        try:
            int(f"{NUMBER}x")
        except ValueError as error:
            raise DatabaseUnavailable("the database is away") from error
    if kind == "group":
        raise ExceptionGroup(NUMBER, [KeyError(NUMBER)])
    raise ValueError(NUMBER)


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("pydantic", "ValidationError"),
        ("cause", "DatabaseUnavailable: the database is away"),
        ("group", "KeyError"),
        ("", "ValueError"),
    ],
)
def test_a_traceback_shows_the_place_and_the_class(form: str, kind: str, shown: str) -> None:
    """Not the text of an error, nor of what led to it, unless that is known to name no value."""
    output = _logged(form, kind)
    assert NUMBER not in output
    assert shown in output
    assert "in _raise" in output
    if form == "json":
        assert json.loads(output)["event"] == "it_failed"


def _logged(form: str, kind: str) -> str:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        with redirect_stderr(stream):
            logs.configure("json" if form == "json" else "text", "info")
            try:
                _raise(kind)
            except (ValueError, ValidationError, DatabaseUnavailable, ExceptionGroup):
                structlog.get_logger("test").exception("it_failed")
    finally:
        root.handlers, root.level = before
        structlog.reset_defaults()
    return stream.getvalue()


def test_what_asyncio_says_of_a_lost_error_has_no_text() -> None:
    """Its lines after the first describe the task, with the error in words."""
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "never retrieved\nfuture: %s", (NUMBER,), None)
    logs._quieten_libraries()
    assert logging.getLogger("asyncio").filter(record)
    assert record.getMessage() == "never retrieved"


def test_the_end_of_each_channel_of_a_lost_connection_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """At level error a dozen lines for each outage; what else goes wrong in such a callback is."""
    logs._quieten_libraries()
    library = logging.getLogger("aio_pika.tools")
    library.error("Callback %r error: %s: %s", "one", "ChannelInvalidStateError", "closed")
    library.error("Callback %r error: %s: %s", "one", "KeyError", "closed")
    assert [record.getMessage() for record in caplog.records] == ["Callback 'one' error: KeyError: closed"]
