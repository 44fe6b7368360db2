"""The session state machine: what each trigger does in each status, and when the gateway is asked."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.domain.session import TRANSITIONS, Trigger, confirms, must_be_confirmed, still_wanted, target
from service.errors import GatewayUnreachable
from whatsapp_qr_contracts.message import SessionStatus

S, T = SessionStatus, Trigger
OFF, OPENING, QR, ON = S.DISCONNECTED, S.CONNECTING, S.QR_READY, S.CONNECTED
NOTHING = None

# Written a second time, as a table that people can check: rows are statuses, columns are triggers.
TABLE = {
    OFF: {T.INITIALIZE: OPENING, T.INITIALIZE_FAILED: NOTHING, T.QR: QR, T.CONNECTED: ON, T.DISCONNECTED: OFF},
    OPENING: {T.INITIALIZE: OPENING, T.INITIALIZE_FAILED: OFF, T.QR: QR, T.CONNECTED: ON, T.DISCONNECTED: OFF},
    QR: {T.INITIALIZE: OPENING, T.INITIALIZE_FAILED: NOTHING, T.QR: QR, T.CONNECTED: ON, T.DISCONNECTED: OFF},
    ON: {T.INITIALIZE: OPENING, T.INITIALIZE_FAILED: NOTHING, T.QR: QR, T.CONNECTED: ON, T.DISCONNECTED: OFF},
}


@pytest.mark.parametrize(("status", "trigger"), list(product(S, T)))
def test_every_trigger_in_every_status(status: SessionStatus, trigger: Trigger) -> None:
    """Every pair has exactly the target of the table; DISCONNECT ends every status."""
    expected = OFF if trigger is T.DISCONNECT else TABLE[status][trigger]
    assert target(status, trigger, wanted=True) is expected


@pytest.mark.parametrize(("status", "trigger"), list(product(S, T)))
def test_a_session_that_nobody_wants_is_not_opened(status: SessionStatus, trigger: Trigger) -> None:
    """A late QR code or connection does not reopen what the user ended; everything else is as if it were wanted."""
    unwanted = target(status, trigger, wanted=False)
    assert unwanted is (NOTHING if trigger in {T.QR, T.CONNECTED} else target(status, trigger, wanted=True))


@pytest.mark.parametrize("status", list(S))
@pytest.mark.parametrize("trigger", [T.QR, T.CONNECTED, T.DISCONNECTED, T.DISCONNECT, T.INITIALIZE_FAILED])
def test_a_repeated_report_changes_nothing_more(status: SessionStatus, trigger: Trigger) -> None:
    """Gateways repeat themselves: the second time leads where the first time led."""
    once = target(status, trigger, wanted=True) or status
    assert (target(once, trigger, wanted=True) or once) is once


@given(st.lists(st.sampled_from([T.QR, T.CONNECTED, T.DISCONNECTED])))
def test_no_replay_of_reports_opens_an_ended_session(replayed: list[Trigger]) -> None:
    """Whatever a gateway replays after an outage, a session that the user ended stays ended."""
    status = OFF
    for trigger in replayed:
        status = target(status, trigger, wanted=False) or status
    assert status is OFF


def test_every_command_has_a_target_in_every_status() -> None:
    """The session consumer looks commands up without asking whether they apply."""
    assert {(status, trigger) for status in S for trigger in (T.INITIALIZE, T.DISCONNECT)} <= set(TRANSITIONS)


@pytest.mark.parametrize(("status", "trigger"), list(product(S, [T.QR, T.CONNECTED, T.DISCONNECTED])))
def test_the_gateway_is_asked_about_what_enters_or_leaves_connected(status: SessionStatus, trigger: Trigger) -> None:
    """A QR code of a session that is not connected is believed at once, so that it is shown at once."""
    assert must_be_confirmed(status, trigger) is not (trigger is T.QR and status is not ON)


@pytest.mark.parametrize(
    ("trigger", "before", "agreeing"),
    [
        (T.CONNECTED, OPENING, {ON}),
        (T.CONNECTED, QR, {ON}),
        (T.CONNECTED, OFF, {ON}),
        (T.QR, ON, {"unknown", OFF, OPENING, QR}),
        (T.DISCONNECTED, ON, {"unknown", OFF, OPENING, QR}),
        (T.DISCONNECTED, OPENING, {"unknown", OFF}),
        (T.DISCONNECTED, QR, {"unknown", OFF}),
    ],
)
def test_which_answers_agree_with_a_report(trigger: Trigger, before: SessionStatus, agreeing: set[str]) -> None:
    """A report that the gateway's present answer contradicts is old news; where it cannot say, the report stands."""
    answers: dict[str, Reported] = {status: OtherState(status) for status in (OFF, OPENING, QR)}
    answers |= {ON: Connected(), "unknown": UnknownSession()}
    assert {name for name, said in answers.items() if confirms(said, trigger, before=before)} == agreeing
    assert confirms(UnknownWord(), trigger, before=before)
    assert confirms(NoAnswer(GatewayUnreachable("away")), trigger, before=before)


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [("logged_out", False), ("replaced", False), ("connection_lost", True), ("qr_expired", True), (None, True)],
)
def test_only_logout_and_replacement_end_the_wish(reason: str | None, wanted: bool) -> None:  # noqa: FBT001
    """A lost connection is the gateway's trouble: the user still wants the session."""
    assert still_wanted(reason) is wanted
