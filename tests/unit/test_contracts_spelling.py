"""On the wire there is one spelling, camelCase; Python's own is for Python alone."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.commands import MAX_MESSAGE_CHARACTERS, MAX_METADATA_BYTES, SendMessage
from whatsapp_qr_contracts.events import MessageReceived
from whatsapp_qr_contracts.gateway import GatewayConnected, GatewayMessage, GatewayQr, Incoming, QrData, Webhook
from whatsapp_qr_contracts.gateway_http import GatewaySession, SessionsAnswer
from whatsapp_qr_contracts.message import MAX_BODY_BYTES, Message, WireModel

SEND, QR, INCOMING = SendMessage.example(), GatewayQr.example(), GatewayMessage.example()


def faults(model: type[WireModel], body: bytes | dict[str, Any]) -> dict[str, str]:
    """Return what `read` complains of: the sentence for each field."""
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ValidationError) as refused:
        model.read(given)
    return {".".join(map(str, fault["loc"])): fault["msg"] for fault in refused.value.errors()}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_what_is_on_the_wire_is_read(message: type[Message]) -> None:
    """Each message, as it is written."""
    one = message.model_validate(message.example())
    assert message.read(one.wire()) == one


@pytest.mark.parametrize(
    ("model", "body", "found"),
    [
        (SendMessage, SEND | {"chatbot_id": SEND["chatbotId"]}, {"chatbot_id": "write chatbotId, not chatbot_id"}),
        (SendMessage, SEND | {"expires_at": None}, {"expires_at": "write expiresAt, not expires_at"}),
        (
            SendMessage,
            {"chatbot_id": SEND["chatbotId"], "message_id": "m", "to": "5491112345678", "message": "Hello"},
            {"chatbot_id": "write chatbotId, not chatbot_id", "message_id": "write messageId, not message_id"},
        ),
        (GatewayQr, QR | {"data": {"qr_code": "x"}}, {"data.qr_code": "write qrCode, not qr_code"}),
        (
            GatewayConnected,
            GatewayConnected.example() | {"data": {"phone_number": "1"}},
            {"data.phone_number": "write phoneNumber, not phone_number"},
        ),
        (
            SessionsAnswer,
            {"sessions": [GatewaySession.example(), {"session_id": "s", "status": "CONNECTED"}]},
            {"sessions.1.session_id": "write sessionId, not session_id"},
        ),
        (
            GatewayMessage,
            {name: value for name, value in INCOMING.items() if name != "from"} | {"sender": "5491112345678"},
            {"sender": "write from, not sender"},
        ),
    ],
    ids=["beside it", "optional", "several", "nested", "nested, optional", "in a list", "another word"],
)
def test_the_other_spelling_is_refused_by_name(
    model: type[WireModel], body: dict[str, Any], found: dict[str, str]
) -> None:
    """An optional field would otherwise be ignored without a word."""
    assert faults(model, body) == found


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (SendMessage, SEND | {"metadata": {"expires_at": "x", "chatbot_id": 1}}),
        (SendMessage, SEND | {"message": 'say "expires_at"', "session_id": "of a newer version"}),
        (MessageReceived, MessageReceived.example() | {"content": '"chatbot_id"'}),
        (GatewayMessage, INCOMING | {"sender": "a field of the gateway's own"}),
    ],
    ids=["the caller's own", "in a text", "in an event's text", "beside another word"],
)
def test_what_only_looks_like_it_passes(model: type[WireModel], body: dict[str, Any]) -> None:
    """Metadata, texts and unknown fields are their senders' own."""
    assert model.read(json.dumps(body).encode()) == model.model_validate(body)


@pytest.mark.parametrize("body", [b"{bad", b'{"expires_at": 1', b'["expires_at"]', b'"chatbot_id"', b"\xff", b""])
def test_what_is_no_message_is_event_as_ever(body: bytes) -> None:
    """As pydantic tells it, also where a name in it looks like a field's."""
    with pytest.raises(ValidationError) as told:
        SendMessage.model_validate_json(body)
    assert faults(SendMessage, body) == {".".join(map(str, one["loc"])): one["msg"] for one in told.value.errors()}


def test_an_escaped_name_does_not_slip_through() -> None:
    """JSON may escape any character: such a name is an unknown field as well."""
    body = SendMessage.model_validate(SEND).wire().replace(b"chatbotId", rb"chatbot\u005fid")
    assert json.loads(body)["chatbot_id"] == SEND["chatbotId"]
    assert faults(SendMessage, body) == {"chatbotId": "Field required"}


def test_the_fault_shows_nothing_of_the_content() -> None:
    """It may be logged, and the content may be a secret."""
    with pytest.raises(ValidationError) as refused:
        GatewayQr.read(json.dumps(QR | {"data": {"qr_code": "the secret"}}).encode())
    assert "the secret" not in str(refused.value)
    assert "the secret" not in str(refused.value.errors())


def test_python_keeps_its_own_spelling() -> None:
    """Whoever constructs a message writes Python."""
    assert QrData(qr_code="x").wire() == b'{"qrCode":"x"}'


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        (Webhook, QR | {"data": {"qr_code": "x"}}, ("qr", "data", "qr_code")),
        (Webhook, QR | {"session_id": "s"}, ("qr", "session_id")),
        (Incoming, INCOMING | {"push_name": "Ana"}, ("push_name",)),
    ],
    ids=["nested", "of a report", "of a customer's message"],
)
def test_parsed_json_has_one_spelling_too(kind: Any, body: dict[str, Any], place: tuple[str, ...]) -> None:
    """What the gateway posts is parsed before its type is known."""
    with pytest.raises(ValidationError, match=r"write [a-zA-Z]+, not [a-z_]+") as refused:
        TypeAdapter(kind).validate_python(body)
    assert [fault["loc"] for fault in refused.value.errors()] == [place]
    assert [fault["type"] for fault in refused.value.errors()] == ["other_spelling"]


def test_the_largest_message_fits_into_the_largest_body() -> None:
    """Also where a writer escapes all it can; what is larger is no message of ours."""
    metadata = {"k": "\x1f" * ((MAX_METADATA_BYTES - 10) // 6)}
    longest = SEND | {"message": "\x1f" * MAX_MESSAGE_CHARACTERS, "metadata": metadata, "messageId": "é" * 200}
    body = json.dumps(longest).encode()
    assert len(SendMessage.read(body).message) == MAX_MESSAGE_CHARACTERS
    assert len(body) > 400_000
    assert len(body) <= MAX_BODY_BYTES
