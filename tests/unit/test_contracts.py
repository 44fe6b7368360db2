"""What may stand in a message, and how it looks on the wire."""

import json
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from whatsapp_qr_contracts.addresses import ADDRESS_PATTERN, normalize_address
from whatsapp_qr_contracts.commands import MAX_MESSAGE_CHARACTERS, MAX_METADATA_BYTES, InitializeSession, SendMessage
from whatsapp_qr_contracts.gateway import (
    GatewayConnected,
    GatewayMessage,
    GatewayQr,
    GatewayReceipt,
    UnixTime,
    Webhook,
    moment_of,
)
from whatsapp_qr_contracts.jobs import IncomingJob, IncomingMetadata, SendJob
from whatsapp_qr_contracts.partitions import chatbot_key, partition_of, session_key

CHATBOT = UUID("11111111-1111-4111-8111-111111111111")
PINNED = {
    "11111111-1111-4111-8111-111111111111": (0, 0),
    "22222222-2222-4222-8222-222222222222": (1, 2),
    "deadbeef-0000-4000-8000-00000000cafe": (2, 0),
    "main": (0, 1),
}
_unix_time: TypeAdapter[int] = TypeAdapter(UnixTime)
_webhook: TypeAdapter[Any] = TypeAdapter(Webhook)


def a_send(**fields: Any) -> SendMessage:
    return SendMessage.model_validate({"chatbotId": CHATBOT, "to": "5491112345678", "message": "hello"} | fields)


def an_incoming(**fields: Any) -> GatewayMessage:
    valid = {"sessionId": "s", "from": "5491112345678", "message": "hi", "messageId": "A1", "timestamp": 1_700_000_000}
    return GatewayMessage.model_validate(valid | fields)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


# Addresses


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        ("5491112345678", "5491112345678"),
        ("+54 9 11 1234-5678", "5491112345678"),
        (" 5491112345678 ", "5491112345678"),
        ("1234567", "1234567"),
        ("123456789012345", "123456789012345"),
        ("5491112345678@s.whatsapp.net", "5491112345678"),
        ("5491112345678:12@s.whatsapp.net", "5491112345678"),
        ("5491112345678@c.us", "5491112345678"),
        ("123456789012345678@lid", "123456789012345678@lid"),
        ("12345678901234:3@lid", "12345678901234@lid"),
        ("120363025246125486@g.us", "120363025246125486@g.us"),
        ("5491112345678-1400000000@g.us", "5491112345678-1400000000@g.us"),
    ],
)
def test_an_address_has_one_form(given_as: str, kept_as: str) -> None:
    """However a caller writes an address, it is stored and compared in one form."""
    assert normalize_address(given_as) == kept_as
    assert re.search(ADDRESS_PATTERN, given_as)


@pytest.mark.parametrize(
    "address",
    [
        *("", "   ", "123456", "1234567890123456", "++5491112345678", "54911x2345678", "(549)1112345678", "٥٤٩١١١٢٣٤"),
        *("5491112345678@example.org", "@lid", "a b@g.us", "5491112345678:@s.whatsapp.net", "x@g.us\n\x00y"),
        *("abc@s.whatsapp.net", "123456@c.us", "1234567890123456@s.whatsapp.net"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """Neither a number of 7 to 15 digits nor a JID: refused at the door; a personal JID must hold a number too."""
    with pytest.raises(ValidationError):
        a_send(to=address)


@given(st.one_of(st.text(), st.from_regex(r"\+?[0-9 -]{5,20}"), st.from_regex(r"[0-9a-z.]+(:\d+)?@(c\.us|lid|g\.us)")))
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    """What REST normalised is read again by every consumer: it must be accepted there and stay as it is."""
    try:
        once = normalize_address(text)
    except ValueError:
        return
    assert normalize_address(once) == once
    assert re.search(ADDRESS_PATTERN, text)  # the schemas refuse nothing that the service takes


# Texts and metadata


def test_nul_is_removed_everywhere() -> None:
    """PostgreSQL refuses U+0000 and SQLite does not: neither ever sees it."""
    command = a_send(to="549\x001112345678", message="a\x00b", metadata={"k\x00": ["v\x00", {"x": "\x00"}]})
    assert (command.to, command.message, command.metadata) == ("5491112345678", "ab", {"k": ["v", {"x": ""}]})
    assert an_incoming(pushName="\x00Ann").push_name == "Ann"


def test_half_an_emoji_is_replaced() -> None:
    """A name cut in the middle of an emoji has no UTF-8: it neither loses the message nor breaks the publish."""
    report = GatewayMessage.model_validate(
        json.loads(r"""{"sessionId": "s", "from": "1", "message": "\ud83d", "messageId": "A", "timestamp": 1}""")
    )
    assert report.message == "\ufffd"
    assert a_send(message="😀", metadata={"\udc00": "\ud800"}).metadata == {"\ufffd": "\ufffd"}
    assert json.loads(a_send(message="\ud83d 😀").wire())["message"] == "\ufffd 😀"


@pytest.mark.parametrize("text", ["", "\x00", "x" * (MAX_MESSAGE_CHARACTERS + 1)])
def test_a_message_has_1_to_65536_characters(text: str) -> None:
    """Too short (also once U+0000 is gone) and too long are refused; the limits themselves are accepted."""
    assert len(a_send(message="😀" * MAX_MESSAGE_CHARACTERS).message) == MAX_MESSAGE_CHARACTERS
    assert a_send(message="x").message == "x"
    with pytest.raises(ValidationError):
        a_send(message=text)


def test_metadata_has_at_most_16_kib() -> None:
    """Counted in bytes of JSON as it is stored, to the byte."""
    fits = "é" * ((MAX_METADATA_BYTES - len('{"k": ""}')) // 2)
    assert a_send(metadata={"k": fits}).metadata == {"k": fits}
    with pytest.raises(ValidationError, match="16384 bytes"):
        a_send(metadata={"k": fits + "xx"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metadata_is_json(value: float) -> None:
    """NaN and Infinity are no JSON: PostgreSQL refuses them, and on the wire they would become null."""
    with pytest.raises(ValidationError):
        a_send(metadata={"deep": [value]})


def test_metadata_that_was_accepted_can_be_read_again() -> None:
    """Every JSON reader has a limit of depth: what the ingress takes, the consumer must be able to read."""
    assert SendMessage.model_validate_json(a_send(metadata=nested(100)).wire()).metadata == nested(100)
    for depth in (101, 2_000):
        with pytest.raises(ValidationError, match="at most 100 deep"):
            a_send(metadata=nested(depth))


@pytest.mark.parametrize("metadata", [[], "x", 1, None])
def test_metadata_is_an_object(metadata: object) -> None:
    """Anything but an object is refused."""
    with pytest.raises(ValidationError):
        a_send(metadata=metadata)


# Times


@pytest.mark.parametrize(
    ("given_as", "read_as"),
    [
        (1_700_000_000, 1_700_000_000),
        ("1700000000", 1_700_000_000),
        (1_700_000_000_123, 1_700_000_000_123),
        ("1700000000123", 1_700_000_000_123),
        (1_700_000_000.9, 1_700_000_000),
        ("1700000000.5", 1_700_000_000),
        (0, 0),
    ],
)
def test_unix_time_comes_in_four_forms(given_as: object, read_as: int) -> None:
    """Seconds or milliseconds, number or text: all are taken, and the unit stays as given."""
    assert _unix_time.validate_python(given_as) == read_as


@pytest.mark.parametrize("value", ["", "soon", None, [], {}, "nan", float("inf"), -1, 10**15, 10**400])
def test_what_is_no_unix_time_is_refused(value: object) -> None:
    """With a validation error, never with another one."""
    with pytest.raises(ValidationError):
        _unix_time.validate_python(value)


@given(st.integers(min_value=0, max_value=4_102_444_800))
def test_seconds_and_milliseconds_name_the_same_moment(seconds: int) -> None:
    """The unit is told by the size of the number, for every moment after March 1973 and before 2100."""
    moment = datetime.fromtimestamp(seconds, UTC)
    assert moment_of(seconds) == moment
    if seconds > 100_000_000:
        assert moment_of(seconds * 1000) == moment


def test_an_instant_needs_its_offset_and_a_report_does_not() -> None:
    """Callers must say which zone they mean; a gateway without one means UTC."""
    assert a_send(expiresAt="2030-01-01T00:00:00+02:00").expires_at == datetime(2029, 12, 31, 22, tzinfo=UTC)
    with pytest.raises(ValidationError):
        a_send(expiresAt="2030-01-01T00:00:00")
    with pytest.raises(ValidationError, match="out of range"):
        a_send(expiresAt="9999-12-31T23:59:59-14:00")
    report = _webhook.validate_python({"type": "connected", "sessionId": "s", "data": {"connectedAt": "2030-01-01"}})
    assert report.data.connected_at == datetime(2030, 1, 1, tzinfo=UTC)


# Reports of the gateway


def test_an_empty_message_needs_a_type_that_is_no_text() -> None:
    """An image without a caption is a message; an empty text is a mistake."""
    assert an_incoming(message="", type="image").message == ""
    for kind in ({}, {"type": None}, {"type": "text"}):
        with pytest.raises(ValidationError, match="message may be empty only"):
            an_incoming(message="", **kind)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"type": "qr", "data": {"qrCode": "data:image/png;base64,xx"}}, GatewayQr),
        ({"type": "connected"}, GatewayConnected),
        ({"type": "receipt", "data": {"messageId": "A", "status": "read"}}, GatewayReceipt),
    ],
)
def test_the_type_of_a_webhook_decides_what_it_is(body: dict[str, Any], kind: type) -> None:
    """One URL takes all reports; `type` tells them apart."""
    assert type(_webhook.validate_python({"sessionId": "s"} | body)) is kind


@pytest.mark.parametrize(
    "body",
    [
        {"type": "qr", "sessionId": "s", "data": {}},
        {"type": "qr", "sessionId": "", "data": {"qrCode": "x"}},
        {"type": "unknown", "sessionId": "s", "data": {}},
        {"sessionId": "s", "data": {}},
        {"type": "receipt", "sessionId": "s", "data": {"messageId": "A", "status": "seen"}},
        {"type": "receipt", "sessionId": "s", "data": {"messageId": "x" * 201, "status": "read"}},
    ],
)
def test_a_bad_webhook_is_refused(body: dict[str, Any]) -> None:
    """A missing field, an unknown type or status, an id that is too long."""
    with pytest.raises(ValidationError):
        _webhook.validate_python(body)


# The wire


def test_the_wire_is_camel_case_as_in_the_replaced_system() -> None:
    """The bodies of both job queues have exactly these fields."""
    ids = {"message_id": CHATBOT, "conversation_id": CHATBOT}
    send = SendJob(session_id="s", to="1", message="m", **ids)
    assert list(json.loads(send.wire())) == ["sessionId", "to", "message", "messageId", "conversationId"]
    origin = IncomingMetadata(whatsapp_message_id="A", timestamp=1)
    job = IncomingJob(content="c", chatbot_id=CHATBOT, external_user_id="1", metadata=origin, **ids)
    assert json.loads(job.wire()) == {
        "conversationId": str(CHATBOT),
        "messageId": str(CHATBOT),
        "content": "c",
        "chatbotId": str(CHATBOT),
        "externalUserId": "1",
        "channel": "WHATSAPP_QR",
        "metadata": {"whatsappMessageId": "A", "timestamp": 1},
    }


def test_unknown_fields_are_ignored() -> None:
    """Either side may be newer than the other."""
    assert a_send(priority="high") == a_send()
    assert "future" not in json.loads(an_incoming(future={"x": 1}).wire())


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.builds(
        a_send,
        message=st.text(min_size=1).filter(lambda text: text.strip("\x00")),
        metadata=st.dictionaries(st.text(max_size=5), _json, max_size=3),
        messageId=st.none() | st.text(st.characters(exclude_characters="\x00"), min_size=1, max_size=200),
        expiresAt=st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    )
)
def test_a_command_survives_the_wire(command: SendMessage) -> None:
    """Whatever is accepted is read back as the same value."""
    assert SendMessage.model_validate_json(command.wire()) == command


@given(st.text(max_size=50), st.text(min_size=1, max_size=50), st.integers(0, 10**13))
def test_a_report_survives_the_wire(text: str, sender: str, timestamp: int) -> None:
    """What the ingress publishes is what the gateway reported."""
    try:
        report = an_incoming(message=text, timestamp=timestamp, type="image", **{"from": sender})
    except ValidationError:
        assert not sender.replace("\x00", "").strip()
        return
    assert GatewayMessage.model_validate_json(report.wire()) == report


# Partitions


def test_partitions_are_crc32_of_the_key() -> None:
    """Publishers in other languages compute the same: the values are pinned."""
    assert partition_of("123456789", 2**32) == 0xCBF43926  # the check value of CRC-32
    for key, partitions in PINNED.items():
        assert (partition_of(key, 4), partition_of(key, 7), partition_of(key, 1)) == (*partitions, 0)


def test_everything_of_a_chatbot_has_one_key() -> None:
    """A session id contains its chatbot, in whatever case; a foreign one is its own key."""
    upper = str(UUID("ABCDEF01-1111-4111-8111-111111111111")).upper()
    assert session_key(f"session_{upper}_1700000000000") == chatbot_key(UUID(upper)) == upper.lower()
    assert InitializeSession.model_validate({"chatbotId": upper}).chatbot_id == UUID(upper)
    for foreign in ("main", f"session_{upper}", f"session_{upper}_1x", f"xsession_{upper}_1", "Größe"):
        assert session_key(foreign) == foreign
        assert 0 <= partition_of(session_key(foreign), 4) < 4


@pytest.mark.parametrize("sender", ["", " ", "\r", "\t\n"])
def test_a_sender_of_blanks_is_none(sender: str) -> None:
    """It is refused at the door: accepted there, nobody could read what was published."""
    with pytest.raises(ValidationError):
        GatewayMessage.model_validate(
            {"sessionId": "s", "from": sender, "message": "hi", "messageId": "A", "timestamp": 1_700_000_000}
        )
