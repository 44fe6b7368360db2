"""What the reconciler decides, by table: what the row says, what the gateway says, and what mends it."""

import itertools

import pytest

from service.domain.reconciling import ACTION_REQUIRED, QR_EXPIRED, Patience, Step, Stored, step
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.errors import GatewayUnreachable
from whatsapp_qr_contracts.message import SessionStatus

PATIENCE = Patience(passing=60, stuck=300)
YOUNG, OLD = 10.0, 61.0
D, C, Q, L = (
    SessionStatus.DISCONNECTED,
    SessionStatus.CONNECTING,
    SessionStatus.QR_READY,
    SessionStatus.CONNECTED,
)
UNKNOWN = UnknownSession()


def decided(
    known: SessionStatus, said: SessionStatus | Reported, age: float, *, wanted: bool = True, **fields: object
) -> Step | None:
    """Return the step, where a status stands for the answer that names it."""
    qr_code = str(fields.pop("qr_there", "the same"))
    if isinstance(said, SessionStatus):
        said = Connected() if said is L else OtherState(said, qr_code)
    here = {"qr_code": "the same"} | fields
    return step(Stored(known, wanted, age, **here), said, PATIENCE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "said", "young", "old"),
    [
        (D, UNKNOWN, None, Step.INITIALIZE),
        (D, D, None, Step.INITIALIZE),
        (D, C, None, None),
        (D, Q, Step.QR, Step.QR),
        (D, L, Step.CONNECTED, Step.CONNECTED),
        (C, UNKNOWN, None, Step.INITIALIZE),
        (C, D, None, Step.INITIALIZE),
        (C, C, None, Step.INITIALIZE),
        (C, Q, Step.QR, Step.QR),
        (C, L, Step.CONNECTED, Step.CONNECTED),
        (Q, UNKNOWN, Step.INITIALIZE, Step.INITIALIZE),
        (Q, D, Step.DISCONNECTED, Step.DISCONNECTED),
        (Q, C, None, None),
        (Q, Q, None, None),
        (Q, L, Step.CONNECTED, Step.CONNECTED),
        (L, UNKNOWN, None, None),
        (L, D, Step.DISCONNECTED, Step.DISCONNECTED),
        (L, C, Step.DISCONNECTED, Step.DISCONNECTED),
        (L, Q, Step.QR, Step.QR),
        (L, L, None, None),
    ],
)
def test_a_wanted_session_is_brought_to_what_the_gateway_says(
    known: SessionStatus, said: SessionStatus | Reported, young: Step | None, old: Step | None
) -> None:
    """The whole table of a wanted session: a state that passes is left alone while it is young."""
    assert decided(known, said, YOUNG) is young
    assert decided(known, said, OLD) is old


def test_the_table_is_complete() -> None:
    """Every pair of states has an answer, for sessions that nobody wants as well."""
    for known, said, wanted in itertools.product(SessionStatus, (UNKNOWN, *SessionStatus), (True, False)):
        decided(known, said, OLD, wanted=wanted)


@pytest.mark.parametrize("said", [UNKNOWN, *SessionStatus])
@pytest.mark.parametrize("known", SessionStatus)
def test_what_nobody_wants_is_ended_and_never_begun(known: SessionStatus, said: SessionStatus | Reported) -> None:
    """A session that runs at the gateway and is not wanted is ended there; nothing else happens to it."""
    assert decided(known, said, OLD, wanted=False) is (None if said in {UNKNOWN, D} else Step.END)


@pytest.mark.parametrize("said", [UnknownWord(), NoAnswer(GatewayUnreachable("away"))], ids=["a word", "nothing"])
@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_decided_where_the_gateway_does_not_say(said: Reported, *, wanted: bool) -> None:
    """Whatever the row says."""
    assert {decided(known, said, OLD, wanted=wanted) for known in SessionStatus} == {None}


@pytest.mark.parametrize("reason", [QR_EXPIRED, ACTION_REQUIRED, "restricted"])
@pytest.mark.parametrize("said", [UNKNOWN, D])
def test_what_waits_for_the_user_is_not_tried_again(reason: str, said: SessionStatus | Reported) -> None:
    """After an expired QR code or a restriction another try is the user's to ask for."""
    assert decided(D, said, 10 * OLD, reason=reason) is None
    assert decided(D, said, OLD, reason="gateway_unreachable") is Step.INITIALIZE


@pytest.mark.parametrize(("lasting", "expected"), [(0.0, None), (59.9, None), (60.0, Step.INITIALIZE)])
def test_a_login_after_a_scan_has_time_of_its_own(lasting: float, expected: Step | None) -> None:
    """A code scanned in its last second: what counts is how long the gateway has been seen to connect."""
    assert decided(Q, C, OLD, reported_for=lasting) is expected


@pytest.mark.parametrize(("lasting", "expected"), [(0.0, None), (59.9, None), (60.0, Step.INITIALIZE)])
def test_a_gateway_that_is_restarted_has_time_to_list_its_sessions(lasting: float, expected: Step | None) -> None:
    """A connection that it does not know is opened anew once it has been unknown there for a minute."""
    assert decided(L, UNKNOWN, OLD, reported_for=lasting) is expected


def test_a_qr_code_that_was_renewed_unheard_is_reported() -> None:
    """An old code that the gateway has replaced is replaced here too; a young one is not looked at."""
    assert decided(Q, Q, 120, qr_there="another") is Step.QR
    assert decided(Q, Q, 119, qr_there="another") is None


def test_a_qr_code_that_is_dead_there_too_is_replaced() -> None:
    """A gateway that has stopped to renew its code is asked for a new pairing."""
    assert decided(Q, Q, 120) is Step.INITIALIZE


def test_another_number_is_reported() -> None:
    """A session that was linked to another phone unheard is reported; however the same number is written is not."""
    known = Stored(L, wanted=True, age=OLD, phone_number="5491100000000")
    assert step(known, Connected("5491199999999"), PATIENCE) is Step.CONNECTED
    assert step(known, Connected("+5491100000000"), PATIENCE) is None
    assert step(known, Connected("5491100000000:7@s.whatsapp.net"), PATIENCE) is None
    assert step(known, Connected(), PATIENCE) is None
    assert step(known, Connected(" "), PATIENCE) is None


@pytest.mark.parametrize(
    ("stuck", "reason", "expected"),
    [
        (None, None, None),
        (299.0, None, None),
        (300.0, None, Step.WARN),
        (900.0, ACTION_REQUIRED, None),
        (0.0, ACTION_REQUIRED, None),
        (None, ACTION_REQUIRED, Step.CONNECTED),
    ],
)
def test_sends_in_vain_are_shown_until_they_succeed(
    stuck: float | None, reason: str | None, expected: Step | None
) -> None:
    """A connected session whose sends fail for long is marked once, and unmarked when nothing is stuck any more."""
    assert decided(L, L, OLD, stuck=stuck, reason=reason) is expected
