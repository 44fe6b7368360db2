"""The reconciler's messages in the session consumer: they begin nothing that nobody wants, and end no link."""

import pytest

from service.domain.identities import output_id
from service.domain.reported import Reported, UnknownSession
from service.persistence.database import Database
from service.persistence.tables import ChatbotRow, SessionRow
from tests.component.rows import all_of, change
from tests.component.standins import World, settled
from whatsapp_qr_contracts.commands import InitializeSession
from whatsapp_qr_contracts.gateway import GatewayConnected
from whatsapp_qr_contracts.message import SessionStatus as S

NUMBER = "5491100000000"


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def a_repair(session: SessionRow) -> InitializeSession:
    return InitializeSession(chatbot_id=session.chatbot_id, repair_of=session.version)


def a_connection(session: SessionRow, **data: str) -> GatewayConnected:
    return GatewayConnected.model_validate({"type": "connected", "sessionId": session.session_id, "data": data})


@pytest.mark.parametrize(
    ("before", "there", "number", "asked", "after", "reason"),
    [
        (S.CONNECTED, UnknownSession(), NUMBER, ["status", "initialize"], S.CONNECTING, None),
        (S.CONNECTED, S.CONNECTED, NUMBER, ["status"], S.CONNECTED, None),
        (S.DISCONNECTED, S.DISCONNECTED, NUMBER, ["status", "initialize"], S.CONNECTING, None),
        (S.CONNECTING, UnknownSession(), None, ["status", "initialize"], S.CONNECTING, "no_qr_code"),
        (S.CONNECTING, S.CONNECTING, None, ["status", "disconnect", "initialize"], S.CONNECTING, "no_qr_code"),
        (S.CONNECTING, S.CONNECTING, NUMBER, ["status", "initialize"], S.CONNECTING, "no_qr_code"),
        (S.QR_READY, S.QR_READY, NUMBER, ["status", "disconnect", "initialize"], S.CONNECTING, None),
    ],
)
async def test_a_repair_begins_anew_what_hangs(
    world: World, before: S, there: Reported | S, number: str | None, asked: list[str], after: S, reason: str | None
) -> None:
    """A pairing that runs is ended first, because /init would leave it; a link that may exist is never ended."""
    session = await settled(world.database, status=before, phone_number=number)
    world.says(there)
    await world.handle(a_repair(session))
    assert world.gateway.asked == asked
    row = await world.row(session.chatbot_id)
    assert (row.status, row.status_reason) == (after, reason)


async def test_a_users_initialize_leaves_a_qr_code_that_is_shown(world: World) -> None:
    """Without `repair_of` a code that can be scanned stays, as before."""
    session = await settled(world.database, status=S.QR_READY, qr_code="data:x")
    world.says(S.QR_READY)
    await world.handle(InitializeSession(chatbot_id=session.chatbot_id))
    assert world.gateway.asked == ["status"]


async def test_a_repair_that_comes_after_the_users_end_does_nothing(world: World) -> None:
    """A user who ended the session, or removed the chatbot, meanwhile is not overruled."""
    session = await settled(world.database, status=S.DISCONNECTED, wanted=False)
    await change(world.database, await _chatbot(world, session), removed_at=session.created_at)
    await world.handle(a_repair(session))
    assert world.gateway.calls == []
    assert (await world.row(session.chatbot_id)).version == session.version
    assert (await _chatbot(world, session)).removed_at is not None
    [rejected] = world.outputs.outputs
    assert (rejected.message.name, rejected.message.code) == ("command.rejected", "not_wanted")
    assert (rejected.message_id, rejected.correlation_id) == (output_id(session.chatbot_id, "command.rejected c"), "c")


@pytest.mark.parametrize("there", [S.CONNECTING, S.QR_READY])
async def test_a_repair_that_was_overtaken_leaves_a_pairing_in_progress(world: World, there: S) -> None:
    """The code came while the repair waited, and may be scanned by now: the gateway is not even asked."""
    session = await settled(world.database, status=S.CONNECTING)
    repair = a_repair(session)
    await change(world.database, session, status=S.QR_READY, qr_code="data:x", version=session.version + 1)
    world.says(there)
    await world.handle(repair)
    assert world.gateway.calls == []
    row = await world.row(session.chatbot_id)
    assert (row.status, row.qr_code, row.version) == (S.QR_READY, "data:x", session.version + 1)
    rejected = world.outputs.messages[-1]
    assert (rejected.name, rejected.code) == ("command.rejected", "outdated")


async def test_a_blank_number_is_none(world: World) -> None:
    """A gateway that writes a blank for a number that it does not know changes nothing."""
    session = await settled(world.database, status=S.CONNECTED, phone_number=NUMBER)
    world.says(S.CONNECTED)
    await world.handle(a_connection(session, phoneNumber=" "))
    row = await world.row(session.chatbot_id)
    assert (row.phone_number, row.version) == (NUMBER, session.version)


async def _chatbot(world: World, session: SessionRow) -> ChatbotRow:
    [row] = await all_of(world.database, ChatbotRow, id=session.chatbot_id)
    assert isinstance(row, ChatbotRow)
    return row


async def test_a_connection_with_a_reason_shows_it_until_one_without(world: World) -> None:
    """`action_required` on a connected session is one change, its end another; repeated they change nothing."""
    session = await settled(world.database, status=S.CONNECTED, phone_number=NUMBER)
    world.says(S.CONNECTED)
    for reason, version in (("action_required", 1), ("action_required", 1), (None, 2), (None, 2)):
        await world.handle(a_connection(session, **({"reason": reason} if reason else {})))
        row = await world.row(session.chatbot_id)
        assert (row.status, row.status_reason, row.version - session.version) == (S.CONNECTED, reason, version)
    assert [(event.name, event.status_reason) for event in world.outputs.messages] == [
        ("session.connected", "action_required"),
        ("session.connected", None),
    ]
