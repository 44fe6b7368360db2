"""Codes are named in one place: documents, labels and readers take them from there."""

import ast
import inspect
from collections.abc import Callable
from enum import StrEnum

import pytest

from service import metrics
from whatsapp_qr_contracts import codes
from whatsapp_qr_contracts.codes import DeadLetterReason, FailureCode, RejectionCode, StatusReason
from whatsapp_qr_contracts.events import CommandRejected, MessageFailed, SessionConnected

ENUMS = [RejectionCode, FailureCode, DeadLetterReason, StatusReason]
WORDS = {
    RejectionCode: "unknown_chatbot no_session id_reused unknown_message not_pending being_sent not_failed "
    "gateway_unreachable gateway_error not_wanted outdated",
    FailureCode: "expired cancelled outcome_unknown number_changed not_on_whatsapp restricted refused "
    "failed_by_whatsapp chatbot_removed",
    DeadLetterReason: "missing_id unknown_type unknown_version invalid_json invalid_message invalid_callback "
    "unknown_session unknown_message handler_failed unroutable unreadable misrouted too_large delivery_limit rejected "
    "expired maxlen moved",
    StatusReason: "requested connection_lost logged_out replaced restricted action_required qr_expired no_qr_code "
    "gateway_unreachable gateway_error",
}


@pytest.mark.parametrize("kind", ENUMS)
def test_a_code_stays_as_it_was(kind: type[StrEnum]) -> None:
    """Others decide by it: none may change its word, and a new one is added here as well."""
    assert [str(code) for code in kind] == WORDS[kind].split()
    assert [code.name for code in kind] == [code.upper() for code in kind]


@pytest.mark.parametrize("kind", ENUMS)
def test_each_code_says_when_and_what_to_do(kind: type[StrEnum]) -> None:
    """In one sentence, right below it."""
    [body] = [
        node.body
        for node in ast.walk(ast.parse(inspect.getsource(codes)))
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    texts = {}
    for member, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
            texts[member.targets[0].id] = said
    assert set(texts) == {code.name for code in kind}
    assert {name for name, text in texts.items() if not text or not text.endswith(".") or ". " in text} == set()


@pytest.mark.parametrize(
    ("described", "kind", "open_ended"),
    [
        (SessionConnected.model_fields["status_reason"].description, StatusReason, True),
        (MessageFailed.model_fields["error_code"].description, FailureCode, True),
        (CommandRejected.model_fields["code"].description, RejectionCode, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_documents_name_every_code(described: str, kind: type[StrEnum], *, open_ended: bool) -> None:
    """And say that there may be more where a gateway may add its own."""
    assert f": {', '.join(kind)}" in described
    assert described.endswith("there may be more") is open_ended


@pytest.mark.parametrize(
    ("label", "kind", "otherwise"),
    [
        (metrics.send_code, FailureCode, "refused"),
        (metrics.dead_letter_reason, DeadLetterReason, "other"),
        (metrics.transition_reason, StatusReason, "other"),
    ],
)
def test_every_code_is_a_label_and_no_other_word(
    label: Callable[[str], str], kind: type[StrEnum], otherwise: str
) -> None:
    """A word that somebody made up would be a new series each time."""
    assert [label(code.value) for code in kind] == list(kind)
    assert label("made_up") == otherwise
