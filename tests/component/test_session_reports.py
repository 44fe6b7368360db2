"""What the gateway reports about a session is settled by asking it: late, replayed or contradicted does no harm."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from service.consumers import session as session_module
from service.domain.identities import output_id
from service.domain.reported import Connected, NoAnswer, Reported, UnknownSession, UnknownWord
from service.errors import DatabaseUnavailable, GatewayOutcomeUnknown, GatewayUnreachable, Undeliverable
from service.persistence import lanes, sessions
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from service.persistence.unpublished import Part
from tests.component.rows import enqueue, reread, send_round
from tests.component.standins import World, connected, disconnected, settled
from whatsapp_qr_contracts.commands import InitializeSession
from whatsapp_qr_contracts.gateway import GatewayQr
from whatsapp_qr_contracts.message import DeliveryStatus, Message
from whatsapp_qr_contracts.message import SessionStatus as S

NUMBER, OTHER = "5491112345678", "5491100000000"
DEVICE = f"{NUMBER}:14@s.whatsapp.net"
NO_ANSWERS = [NoAnswer(GatewayUnreachable("away")), NoAnswer(GatewayOutcomeUnknown("late")), UnknownWord()]


@pytest.fixture
def world(database: Database, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(session_module, "_ASK_AGAIN_AFTER", (0.0, 0.0))
    return World(database)


def a_qr(session: SessionRow, code: str = "data:QR") -> GatewayQr:
    return GatewayQr(type="qr", session_id=session.session_id, data={"qrCode": code})


async def state(world: World, session: SessionRow) -> tuple[S, int]:
    row = await world.row(session.chatbot_id)
    return row.status, row.version - session.version


@pytest.mark.parametrize(
    ("before", "report", "answer"),
    [
        (S.CONNECTED, disconnected, S.CONNECTED),
        (S.CONNECTED, a_qr, S.CONNECTED),
        (S.CONNECTING, connected, S.DISCONNECTED),
        (S.QR_READY, connected, UnknownSession()),
        (S.CONNECTING, disconnected, S.QR_READY),
    ],
)
async def test_a_contradicted_report_changes_nothing(
    world: World, before: S, report: Any, answer: Reported | S
) -> None:
    """The gateway is asked three times; where it keeps contradicting its report, that was old news."""
    session = await settled(world.database, status=before)
    world.says(answer)
    await world.handle(report(session))
    assert world.gateway.asked == ["status"] * 3
    assert await state(world, session) == (before, 0)
    assert world.outputs.outputs == []


@pytest.mark.parametrize("answer", [*NO_ANSWERS, S.CONNECTED])
async def test_a_connection_is_believed_unless_it_is_denied(world: World, answer: Reported | S) -> None:
    """Confirmed, or reported by a gateway that cannot say more: connected, with the reported number."""
    session = await settled(world.database, status=S.QR_READY)
    world.says(answer)
    await world.handle(connected(session, f"+{NUMBER}"))
    assert await state(world, session) == (S.CONNECTED, 1)
    assert (await world.row(session.chatbot_id)).phone_number == NUMBER
    assert world.outputs.names == ["session.connected"]
    assert world.outputs.ids == [output_id(session.id, f"version {session.version + 1}")]


@pytest.mark.parametrize("answer", [*NO_ANSWERS, UnknownSession(), S.DISCONNECTED, S.QR_READY])
async def test_an_end_is_believed_unless_it_is_denied(world: World, answer: Reported | S) -> None:
    """A session that the gateway does not call connected is disconnected, with the reported reason, still wanted."""
    session = await settled(world.database)
    world.says(answer)
    await world.handle(disconnected(session))
    row = await world.row(session.chatbot_id)
    assert (row.status, row.status_reason, row.wanted) == (S.DISCONNECTED, "connection_lost", True)


async def test_a_gateway_that_comes_round_is_believed(world: World) -> None:
    """Its status may lag behind its report: the second answer counts."""
    session = await settled(world.database, status=S.CONNECTING)
    world.says(S.CONNECTING, Connected(DEVICE))
    await world.handle(connected(session))
    assert world.gateway.asked == ["status"] * 2
    assert await state(world, session) == (S.CONNECTED, 1)
    assert (await world.row(session.chatbot_id)).phone_number == NUMBER


async def test_a_replayed_report_is_not_even_asked_about(world: World) -> None:
    """Each report twice: the second changes nothing, announces nothing and costs the gateway nothing."""
    session = await settled(world.database, status=S.CONNECTING)
    for report, answer in ((a_qr, S.QR_READY), (connected, S.CONNECTED), (disconnected, S.DISCONNECTED)):
        world.says(answer)
        await world.handle(report(session))
        names, asked = list(world.outputs.names), list(world.gateway.asked)
        await world.handle(report(session), "again")
        assert (world.outputs.names, world.gateway.asked) == (names, asked)
    assert world.outputs.names == ["session.qr_ready", "session.connected", "session.disconnected"]


async def test_a_renewed_qr_code_is_shown(world: World) -> None:
    """A code that differs from the last one is a new version with an event of its own."""
    session = await settled(world.database, status=S.CONNECTING)
    for code in ("data:1", "data:1", "data:2"):
        await world.handle(a_qr(session, code))
    assert [event.qr_code for event in world.outputs.messages] == ["data:1", "data:2"]
    assert len(set(world.outputs.ids)) == 2


async def test_nobody_wants_what_was_disconnected(world: World) -> None:
    """A QR code of an unwanted session is ignored, and its connection is ended at the gateway."""
    session = await settled(world.database, status=S.DISCONNECTED, wanted=False)
    world.says(S.CONNECTED)
    await world.handle(a_qr(session))
    await world.handle(connected(session, NUMBER))
    assert world.gateway.calls == [f"disconnect {session.session_id}"]
    assert await state(world, session) == (S.DISCONNECTED, 0)
    assert world.outputs.outputs == []


async def test_a_report_of_an_unknown_session_is_undeliverable(world: World) -> None:
    """Nobody knows it and nobody ever will: it is for the dead letters, and the gateway is not asked."""
    session = await settled(world.database)
    for report in (a_qr, connected, disconnected):
        foreign = report(session).model_copy(update={"session_id": "foreign"})
        with pytest.raises(Undeliverable) as raised:
            await world.handle(foreign)
        assert raised.value.code == "unknown_session"
    assert world.gateway.calls == []


@pytest.mark.parametrize("reason", ["logged_out", "replaced"])
async def test_a_logout_after_a_lost_connection_ends_the_wish(world: World, reason: str) -> None:
    """It comes to a session that is disconnected already, and is told all the same; a later loss is old news."""
    session = await settled(world.database)
    await world.handle(disconnected(session, "connection_lost"))
    assert (await world.row(session.chatbot_id)).wanted
    await world.handle(disconnected(session, reason))
    row = await world.row(session.chatbot_id)
    assert (row.status, row.status_reason, row.wanted) == (S.DISCONNECTED, reason, False)
    await world.handle(disconnected(session, "connection_lost"))
    assert await state(world, session) == (S.DISCONNECTED, 2)
    assert [event.status_reason for event in world.outputs.messages] == ["connection_lost", reason]


# Numbers


@pytest.mark.parametrize("form", [f"+{NUMBER}", f"+54 911 1234-{NUMBER[-4:]}", DEVICE, f"{NUMBER}@c.us", NUMBER])
async def test_the_forms_of_a_number_are_one_number(world: World, form: str) -> None:
    """With a plus, as a JID or from another device: the same account, so what waits does not fail."""
    session = await settled(world.database, status=S.DISCONNECTED, phone_number=NUMBER)
    message = await enqueue(world.database, session)
    world.says(Connected(form))
    await world.handle(connected(session, form))
    assert (await reread(world.database, message)).delivery_status is DeliveryStatus.PENDING
    assert (await world.row(session.chatbot_id)).phone_number == NUMBER
    await world.handle(connected(session, form), "again")
    assert world.outputs.names == ["session.connected"]


@pytest.mark.parametrize(
    ("reported", "answered"), [(OTHER, OTHER), (OTHER, None), (None, OTHER), (f"+{OTHER}", f"{OTHER}:3@s.whatsapp.net")]
)
async def test_another_number_fails_what_waits(world: World, reported: str | None, answered: str | None) -> None:
    """Whoever names the other number, report or status: what was written for the old account is not sent from it."""
    session = await settled(world.database, status=S.DISCONNECTED, phone_number=NUMBER)
    message = await enqueue(world.database, session)
    world.says(Connected(answered))
    await world.handle(connected(session, reported))
    [failed] = (await send_round(world.database, session)).changed
    assert (failed.id, failed.delivery_status, failed.error_code) == (
        *(message.id, DeliveryStatus.FAILED, "number_changed"),
    )
    assert (await world.row(session.chatbot_id)).phone_number == OTHER
    assert world.outputs.names == ["session.connected"]


@pytest.mark.parametrize("by_command", [False, True])
async def test_another_number_is_seen_while_connected(world: World, *, by_command: bool) -> None:
    """A re-pairing that nobody reported the end of: the new number is kept and announced, what waited fails."""
    session = await settled(world.database, phone_number=NUMBER)
    message = await enqueue(world.database, session)
    world.says(Connected(OTHER))
    initialize = InitializeSession(chatbot_id=session.chatbot_id)
    await world.handle(initialize if by_command else connected(session, OTHER))
    assert await state(world, session) == (S.CONNECTED, 1)
    assert (await world.row(session.chatbot_id)).phone_number == OTHER
    [failed] = (await send_round(world.database, session)).changed
    assert (failed.id, failed.error_code) == (message.id, "number_changed")
    assert world.outputs.names == ["session.connected"]


# What else happens meanwhile


@pytest.mark.parametrize("by_command", [False, True])
async def test_a_connection_wakes_the_lane(world: World, *, by_command: bool) -> None:
    """A lane that slept because its session was not connected is due, whoever found the connection."""
    session = await settled(world.database, status=S.DISCONNECTED)
    await enqueue(world.database, session)
    everything = Part(1, {0: 0.0})

    async def due() -> list[str]:
        return await world.database.read(lambda tx: lanes.due(tx, everything))

    await send_round(world.database, session)
    assert await due() == []
    world.says(S.CONNECTED)
    await world.handle(InitializeSession(chatbot_id=session.chatbot_id) if by_command else connected(session, NUMBER))
    assert await due() == [session.session_id]


@pytest.mark.parametrize("report", [connected, disconnected])
async def test_a_decision_on_a_stale_state_is_made_again(world: World, other_process: Database, report: Any) -> None:
    """Another process disconnects while the gateway is asked: nothing is written over it, and the next try sees it."""
    before, answer = (S.QR_READY, S.CONNECTED) if report is connected else (S.CONNECTED, S.DISCONNECTED)
    session = await settled(world.database, status=before)
    await stale(world, other_process, session, report(session), answer)
    await world.handle(report(session))
    row = await world.row(session.chatbot_id)
    assert (row.status, row.status_reason, row.wanted) == (S.DISCONNECTED, "requested", False)
    assert world.gateway.asked == (["status", "disconnect"] if report is connected else ["status"])
    assert world.outputs.outputs == []


async def test_an_initialize_on_a_stale_state_is_decided_again(world: World, other_process: Database) -> None:
    """It came after the disconnect that it did not see: the gateway is asked and the session opened once."""
    session = await settled(world.database)
    command = InitializeSession(chatbot_id=session.chatbot_id)
    await stale(world, other_process, session, command, S.DISCONNECTED)
    assert world.gateway.asked == ["status"]
    await world.handle(command)
    assert world.gateway.asked == ["status", "status", "initialize"]
    assert world.outputs.names == ["session.connecting"]
    assert (await world.row(session.chatbot_id)).wanted


async def stale(world: World, other: Database, session: SessionRow, message: Message, answer: S) -> None:
    """Handle a message while another process ends the session."""

    async def end(tx: AsyncSession) -> None:
        locked = await sessions.session_by_id(tx, session.session_id, lock=True)
        assert locked is not None
        sessions.move(tx, locked, S.DISCONNECTED, wanted=False, reason="requested")

    async def elsewhere() -> None:
        await other.transact(end)

    world.says(answer)
    world.gateway.meanwhile = elsewhere
    with pytest.raises(DatabaseUnavailable):
        await world.handle(message)
    world.gateway.meanwhile = None
    assert world.outputs.outputs == []
