"""The gate: what would break those who use the last release is found, and nothing else is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import generate, released
from schemas.compatibility import breaks
from schemas.messages import message_documents

Documents = dict[str, Any]
Change = Callable[[Documents], object]
RELEASED = released.load(generate.FOLDER / released.RELEASED)
PRESENT = message_documents()


@pytest.fixture
def documents() -> Documents:
    return copy.deepcopy(PRESENT)


def _schema(documents: Documents, name: str) -> Any:
    return documents[f"messages/{name}.json"]


def _fields(documents: Documents, name: str) -> Any:
    return _schema(documents, name)["properties"]


def _way(documents: Documents, name: str) -> Any:
    return documents["routing.json"]["messages"][name]


def _rename(fields: Any, before: str, after: str) -> None:
    fields[after] = fields.pop(before)


def _add_required(documents: Documents, name: str) -> None:
    _fields(documents, name)["priority"] = {"type": "string"}
    _schema(documents, name)["required"].append("priority")


def _remove_message(documents: Documents, name: str) -> None:
    del documents["routing.json"]["messages"][name]


SENT, SEND, JOB = "message.sent", "message.send", "incoming-messages"
BREAKS: dict[str, tuple[str, Change]] = {
    "message.send: metadata was removed": ("command field removed", lambda d: _fields(d, SEND).pop("metadata")),
    "message.sent: sessionId was removed": ("event field removed", lambda d: _fields(d, SENT).pop("sessionId")),
    "message.send: message was removed": (
        "command field renamed",
        lambda d: _rename(_fields(d, SEND), "message", "text"),
    ),
    "incoming-messages: content was removed": (
        "job field renamed",
        lambda d: _rename(_fields(d, JOB), "content", "text"),
    ),
    'message.send: message was {"maxLength": 65536, "minLength": 1, "type": "string"}': (
        "command field shortened",
        lambda d: _fields(d, SEND)["message"].update(maxLength=100),
    ),
    'message.send: metadata was {"additionalProperties": true, "type": "object"}': (
        "command field of another type",
        lambda d: _fields(d, SEND)["metadata"].update(type="array"),
    ),
    'message.send: messageId was {"anyOf"': (
        "command field that may not be null any more",
        lambda d: _fields(d, SEND)["messageId"]["anyOf"].pop(),
    ),
    'message.send: to was {"pattern": "^': (
        "command field with another pattern",
        lambda d: _fields(d, SEND)["to"].update(pattern="^[0-9]+$"),
    ),
    "message.send: expiresAt has another default": (
        "command field with another default",
        lambda d: _fields(d, SEND)["expiresAt"].update(default="2030-01-01T00:00:00Z"),
    ),
    'incoming-messages: metadata.timestamp was {"type": "integer"} and is {"type": "number"}': (
        "job field widened, in a type of its own",
        lambda d: _schema(d, JOB)["$defs"]["IncomingMetadata"]["properties"]["timestamp"].update(type="number"),
    ),
    'message.failed: errorCode was {"type": "string"} and is {"anyOf"': (
        "event field that may be null",
        lambda d: _fields(d, "message.failed").update(errorCode={"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ),
    "message.sent: occurredAt may now be missing": (
        "event field that may be missing",
        lambda d: _schema(d, SENT)["required"].remove("occurredAt"),
    ),
    "message.send: metadata is now required": (
        "command field that was optional",
        lambda d: _schema(d, SEND)["required"].append("metadata"),
    ),
    "message.cancel: priority is now required": (
        "new required field in a command",
        lambda d: _add_required(d, "message.cancel"),
    ),
    'session.connected: status was {"const": "CONNECTED", "type": "string"}': (
        "event with another value",
        lambda d: _fields(d, "session.connected")["status"].update(const="LINKED"),
    ),
    "message.sent: exchange was 'whatsapp-qr.events' and is 'elsewhere'": (
        "exchange changed",
        lambda d: _way(d, SENT).update(exchange="elsewhere"),
    ),
    "message.sent: routingKey was 'message.sent' and is 'sent'": (
        "routing key changed",
        lambda d: _way(d, SENT).update(routingKey="sent"),
    ),
    "message.send: partitionKeyFrom was 'chatbotId' and is 'sessionId'": (
        "order kept for something else",
        lambda d: _way(d, SEND).update(partitionKeyFrom="sessionId"),
    ),
    "incoming-messages: header conversation-sequence was removed": (
        "header removed",
        lambda d: _way(d, JOB)["headers"]["properties"].pop("conversation-sequence"),
    ),
    "message.send: header partition-key is now required": (
        "header of a command required",
        lambda d: _way(d, SEND)["headers"].update(required=["partition-key"]),
    ),
    "message.send: the message was removed": ("message removed", lambda d: _remove_message(d, SEND)),
    "message.sent: its schema_version was lowered": (
        "version lowered",
        lambda d: _way(d, SENT).update(schemaVersion=0),
    ),
    "message.send: the body no longer takes unknown fields": (
        "command that refuses what is unknown",
        lambda d: _schema(d, SEND).update(additionalProperties=False),
    ),
}


@pytest.mark.parametrize("sentence", BREAKS, ids=[what for what, _ in BREAKS.values()])
def test_a_break_is_caught(documents: Documents, sentence: str) -> None:
    """Each kind, on the real messages, by a sentence that names message and field."""
    BREAKS[sentence][1](documents)
    found = breaks(RELEASED, released.contract(documents))
    assert [fault for fault in found if fault.startswith(sentence)], found


@pytest.mark.parametrize("sentence", BREAKS, ids=[what for what, _ in BREAKS.values()])
def test_a_break_passes_under_a_new_version(documents: Documents, sentence: str) -> None:
    """Of the message; where it was removed, or its version lowered, of the contracts."""
    BREAKS[sentence][1](documents)
    if "removed" in BREAKS[sentence][0] and "message was" in sentence:
        documents["routing.json"]["version"] = "9.0.0"
    else:
        _way(documents, sentence.partition(":")[0])["schemaVersion"] = 2
    assert breaks(RELEASED, released.contract(documents)) == []


ENUM = {"type": "string", "enum": ["A", "B"]}


@pytest.mark.parametrize(
    ("name", "values", "broken"),
    [(SEND, ["A"], True), (SEND, ["A", "B", "C"], False), (SENT, ["A"], False), (SENT, ["A", "B", "C"], True)],
    ids=["removed from a command", "added to a command", "removed from an event", "added to an event"],
)
def test_values_of_an_enum(documents: Documents, name: str, values: list[str], broken: bool) -> None:  # noqa: FBT001
    """A command may take more and an event may hold less: strict readers refuse a value that they do not know."""
    _fields(documents, name)["kind"] = ENUM
    before = released.contract(copy.deepcopy(documents))
    _fields(documents, name)["kind"] = {"type": "string", "enum": values}
    assert bool(breaks(before, released.contract(documents))) is broken


HARMLESS: dict[str, Change] = {
    "nothing": lambda _: None,
    "optional field in a command": lambda d: _fields(d, SEND).update(priority={"type": "string", "default": "low"}),
    "field in an event": lambda d: _add_required(d, SENT),
    "optional field in a job": lambda d: _fields(d, JOB).update(priority={"type": "string"}),
    "command that takes more": lambda d: _fields(d, SEND)["message"].update(maxLength=100_000),
    "command field that may be left out": lambda d: _schema(d, SEND)["required"].remove("message"),
    "event that holds less": lambda d: _fields(d, "message.failed")["errorCode"].update(maxLength=50),
    "event field of fewer types": lambda d: _fields(d, "message.failed").update(errorMessage={"type": "string"}),
    "other words": lambda d: _fields(d, SEND)["to"].update(description="Whom", examples=["1234567"], title="To"),
    "another header of a job": lambda d: _way(d, JOB)["headers"]["properties"].update(tracestate={"type": "string"}),
    "a new message": lambda d: (
        d["routing.json"]["messages"].update({"message.new": _way(d, SENT)}),
        d.update({"messages/message.new.json": _schema(d, SENT)}),
    ),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_breaks_nobody_passes(documents: Documents, change: Change) -> None:
    """Unknown fields are ignored by everybody, so both sides may learn something new."""
    change(documents)
    assert breaks(RELEASED, released.contract(documents)) == []


def test_make_check_fails_on_a_break(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate.py --check` says what broke, and how to go on."""
    changed = message_documents()
    _fields(changed, SEND).pop("metadata")
    monkeypatch.setattr(generate, "message_documents", lambda: changed)
    assert generate.main(["--check"]) == 1
    complaint = capsys.readouterr().err
    assert "message.send: metadata was removed\nKeep what was released, or raise the schema_version" in complaint


def test_a_lost_release_fails_the_check(tmp_path: Path) -> None:
    """Without it nothing would be compared."""
    assert "cannot be read" in released.broken(tmp_path, message_documents())[0]


def test_a_release_is_renewed_under_a_new_version_only(tmp_path: Path, documents: Documents) -> None:
    """Never over a break, never under the number of another one; again, it changes nothing."""
    assert released.release(tmp_path, documents) == []
    assert released.release(tmp_path, documents) == []
    _fields(documents, SEND)["priority"] = {"type": "string"}
    assert "raise contracts/pyproject.toml" in released.release(tmp_path, documents)[0]
    documents["routing.json"]["version"] = "0.2.0"
    assert released.release(tmp_path, documents) == []
    assert "priority" in released.load(tmp_path / "released").messages[SEND][1]["properties"]
    _fields(documents, SEND).pop("priority")
    documents["routing.json"]["version"] = "0.2.1"
    assert "priority was removed" in released.release(tmp_path, documents)[0]
