"""Dead letters without broker and database: which is which, what JSON keeps, what is printed."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.dead_letters import DeadLetter, Original, is_repetition
from service.messaging.dead_letters import read_dead_letter
from service.messaging.lossless import from_json, to_json
from service.messaging.topology import DEAD_LETTERS
from service.operating import showing
from service.persistence.tables import DeadLetterRow

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary().map(bytearray)
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(-(2**31), 2**31 - 1)
)
names = st.text() | st.sampled_from(["$bytes", "$time", "$table", "$", "a"])
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=8)


@given(values)
def test_json_keeps_every_header(value: Any) -> None:
    """Whatever a header holds comes back, of the same type, through text that any JSON reader takes."""
    text = json.dumps(to_json(value), allow_nan=False)
    assert _typed(from_json(json.loads(text))) == _typed(value)


def test_json_keeps_what_is_no_number() -> None:
    """NaN is not JSON and equals nothing, not even itself."""
    assert math.isnan(from_json(to_json(math.nan)))


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("$decimal", "forged"),
        ("$decimal", "1E+999999999"),
        ("$decimal", {}),
        ("$bytes", "a"),
        ("$time", 1),
        ("$float", "x"),
        ("$table", 1),
        ("$table", [["a", {"$decimal": "forged"}]]),
    ],
)
def test_what_was_never_written_is_not_read(form: str, content: Any) -> None:
    """Whatever was forged, there is one error for it."""
    with pytest.raises(ValueError, match=r"not a value of the form \$"):
        from_json({"in a table": [{form: content}]})


def _typed(value: Any) -> Any:
    match value:
        case dict():
            return {name: _typed(item) for name, item in value.items()}
        case list():
            return [_typed(item) for item in value]
        case bytearray():
            return (bytearray, bytes(value))
        case _:
            return (type(value), value)


def forged(headers: dict[str, Any], body: bytes = b"no json") -> Any:
    raw = SimpleNamespace(**dict.fromkeys(_PROPERTIES), exchange=DEAD_LETTERS, routing_key="k", redelivered=False)
    raw.headers, raw.body = headers, body
    return raw


_PROPERTIES = (
    "message_id",
    "correlation_id",
    "type",
    "content_type",
    "content_encoding",
    "reply_to",
    "expiration",
    "priority",
    "timestamp",
    "app_id",
    "user_id",
)


@pytest.mark.parametrize(
    "headers",
    [
        {"original": '{"priority": NaN}'},
        {"original": '{"headers": {"a": [-Infinity]}}'},
        {"original": '{"headers": {"a": 1e999}}'},
        {"original": "[" * 100_000},
        {"original": '{"headers": {"a": ' + "[" * 900 + "]" * 900 + "}}"},
        {"x-death": [{"original-expiration": "1" * 4_000}]},
        {"source-exchange": "\ud800"},
    ],
)
def test_what_is_forged_is_unreadable(headers: dict[str, Any]) -> None:
    """It does not raise, whatever it is; the bytes are kept."""
    dead = read_dead_letter(forged(headers))
    assert (dead.reason, dead.original.body, dead.original.properties) == ("unreadable", b"no json", {})
    assert dead.id


def test_a_forged_text_becomes_one_that_can_be_stored() -> None:
    """Half an emoji has no UTF-8, and no database takes U+0000 in a text."""
    original = json.dumps({"messageId": "m\ud800", "headers": {"a\udfff": ["\ud800", "\x00"]}})
    dead = read_dead_letter(forged({"original": original, "death-id": "b\x00"}))
    assert (dead.original.text("messageId"), dead.death_id) == ("m?", "b")
    assert dead.original.headers == {"a?": ["?", "\x00"]}
    assert dead.id


def a_death(**fields: Any) -> DeadLetter:
    original = Original(
        body=fields.pop("body", b"{}"),
        exchange=fields.pop("exchange", "whatsapp-qr.commands"),
        routing_key="message.send.0",
        properties={"messageId": fields.pop("message_id", "m")},
        headers={},
    )
    defaults: dict[str, Any] = {
        "reason": "handler_failed",
        "detail": "",
        "source": "whatsapp-qr.conversations",
        "death_id": "b",
        "redelivered": False,
        "died_at": None,
    }
    return DeadLetter(original, **(defaults | fields))


def test_the_same_message_has_the_same_id() -> None:
    """However often, wherever and of what it dies; a blank id is none."""
    same = {a_death().id, a_death(reason="x", detail="y", source="z", death_id="c", redelivered=True).id}
    assert len(same) == 1
    assert a_death(message_id="").id == a_death(message_id=" ").id


@pytest.mark.parametrize("fields", [{"message_id": "n"}, {"message_id": ""}, {"body": b"[]"}, {"exchange": "e"}])
def test_another_message_has_another_id(fields: dict[str, Any]) -> None:
    """By id, content and destination."""
    assert a_death(**fields).id != a_death().id


@pytest.mark.parametrize(
    ("death_id", "redelivered", "replayed", "repetition"),
    [
        ("b", False, False, True),
        ("b", True, False, True),
        ("c", True, False, False),
        ("", True, False, True),
        ("", False, False, False),
        ("b", True, True, False),
        ("", True, True, False),
    ],
)
def test_a_death_counts_once(death_id: str, *, redelivered: bool, replayed: bool, repetition: bool) -> None:
    """The same death_id is the same death; after a replay it counts in doubt, so that none stays hidden as replayed."""
    death = a_death(death_id=death_id, redelivered=redelivered)
    assert is_repetition(death, last_death_id="b" if death_id else "", replayed=replayed) is repetition


def a_row(body: bytes = b"{}", **fields: Any) -> DeadLetterRow:
    defaults: dict[str, Any] = {
        "id": UUID("0123456789abcdef0123456789abcdef"),
        "reason": "invalid_json",
        "source": "whatsapp-qr.conversations",
        "type": "message.send",
        "died_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "headers": {"d": to_json(Decimal(1))},
    }
    return DeadLetterRow(body=body, **(defaults | fields))


QR_CODE = "data:image/png;base64,SECRET"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"type": "qr", "sessionId": "s", "data": {"qrCode": QR_CODE}}).encode(),
        json.dumps([{"qr_code": QR_CODE}]).encode(),
        f'{{"qr\\u0043ode": "{QR_CODE}"}}'.encode(),
        f'{{"qrCode": "x", "qrCode": "{QR_CODE}"}}'.encode(),
        f'{{"data": {{"qrCode": "{QR_CODE}"'.encode(),
        f'{{"qrCode": "{QR_CODE}", "\xff"'.encode("latin-1"),
        json.dumps({"qrCode": QR_CODE}).encode("utf-16"),
        json.dumps({"type": "qr", "data": {"code": QR_CODE}}).encode(),
        json.dumps([" " + QR_CODE.upper()]).encode(),
        json.dumps(QR_CODE).encode(),
        json.dumps({"data": json.dumps({"code": QR_CODE})}).encode(),
        f'{{"code": "{QR_CODE}", "code": "x"}}'.encode(),
        b'{"code": "\\u0064ata:image\\/png;base64,SECRET"}',
        f'{{"code": "{QR_CODE}'.encode(),
        json.dumps({"code": QR_CODE})[:-1].encode("utf-16"),
    ],
)
def test_a_qr_code_is_shown_only_where_asked_for(body: bytes) -> None:
    """Whatever is wrong with the body, its QR code stays out of terminals and logs; what is asked for is whole."""
    hidden = json.dumps(showing.everything(a_row(body), secrets=False))
    assert "SECRET" not in hidden
    assert "bodyBase64" not in hidden
    assert "SECRET" not in "\n".join(showing.described(a_row(body), secrets=False))
    shown = showing.everything(a_row(body), secrets=True)
    assert ("body" in shown and shown["body"].encode() == body) or "bodyBase64" in shown


def test_a_body_is_text_where_it_can_be() -> None:
    """As it is, unchanged; else in base64."""
    assert showing.everything(a_row(b'{"to":  1}'), secrets=False)["body"] == '{"to":  1}'
    assert showing.everything(a_row(b"\xff"), secrets=False)["bodyBase64"] == "/w=="


def test_a_list_says_nothing_of_the_content() -> None:
    """Ids, times, reasons: no body, no header; nothing that a terminal would obey."""
    row = a_row(b'{"message": "private"}', detail="private", type="\x1b[2J\n", message_id="private")
    heading, line = showing.table([row])
    assert heading.split() == ["ID", "DIED", "AT", "REASON", "SOURCE", "TYPE", "ATTEMPTS", "REPLAYED", "AT"]
    fields = ["01234567", "2026-01-02T03:04:05", "invalid_json", "whatsapp-qr.conversations", r"\x1b[2J\x0a", "1", "-"]
    assert line.split() == fields
    assert "private" not in json.dumps(showing.summary(row))
