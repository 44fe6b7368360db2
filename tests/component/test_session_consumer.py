"""The session consumer on both databases: what each command leads to, also after a crash."""

from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest

from service.consumers import row_outputs
from service.consumers.row_outputs import Output
from service.domain.identities import key_hash, output_id
from service.domain.reported import Connected, NoAnswer, Reported, UnknownSession, UnknownWord
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable, Undeliverable
from service.persistence import sessions
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.tables import CommandRow, MessageRow, SessionRow
from tests.component.rows import all_of, enqueue
from tests.component.standins import ASKED_AT, CrashError, World, connected, disconnected, settled
from whatsapp_qr_contracts.commands import (
    Command,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
)
from whatsapp_qr_contracts.message import Message
from whatsapp_qr_contracts.message import SessionStatus as S

NUMBER, OTHER = "5491112345678", "5491100000000"


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def initialize(chatbot_id: UUID) -> InitializeSession:
    return InitializeSession(chatbot_id=chatbot_id)


# Initialize


async def test_a_first_initialize_opens_a_session(world: World) -> None:
    """Named after its chatbot and the time it was asked for; the gateway opens it; the command's row alone says so."""
    chatbot_id = uuid4()
    await world.handle(initialize(chatbot_id))
    row = await world.row(chatbot_id)
    assert row.session_id == f"session_{chatbot_id}_{int(ASKED_AT.timestamp() * 1000)}"
    assert (row.status, row.wanted, row.version, row.told_version) == (S.CONNECTING, True, 1, 1)
    assert world.gateway.calls == [f"initialize {row.session_id} {chatbot_id}"]
    [told] = world.outputs.outputs
    assert (told.message.name, told.message_id) == ("session.connecting", output_id(row.id, "version 1"))
    assert told.correlation_id == "c"
    assert await rows_tell(world.database, initialize(chatbot_id)) == [told]


async def test_initialize_believes_a_gateway_that_is_connected(world: World) -> None:
    """A link that the gateway still has is taken over, with its number, and not opened again."""
    session = await settled(world.database, status=S.DISCONNECTED, wanted=False)
    world.says(Connected(f"{NUMBER}:7@s.whatsapp.net"))
    await world.handle(initialize(session.chatbot_id))
    row = await world.row(session.chatbot_id)
    assert (row.status, row.wanted, row.phone_number) == (S.CONNECTED, True, NUMBER)
    assert world.gateway.asked == ["status"]
    assert world.outputs.names == ["session.connected"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GatewayUnreachable("away"), "gateway_unreachable"),
        (GatewayOutcomeUnknown("late"), "gateway_error"),
        (GatewayRefused("no", code="busy"), "gateway_error"),
    ],
)
async def test_initialize_leaves_a_connected_session_to_a_gateway_that_cannot_say(
    world: World, error: GatewayError, code: str
) -> None:
    """While nobody knows, a working link is not torn: the command is rejected and nothing has changed."""
    session = await settled(world.database)
    world.says(NoAnswer(error))
    await world.handle(initialize(session.chatbot_id))
    [told] = world.outputs.outputs
    assert (told.message.name, told.message.code) == ("command.rejected", code)
    assert (told.message.command_id, told.correlation_id) == ("c", "c")
    row = await world.row(session.chatbot_id)
    assert (row.status, row.version) == (S.CONNECTED, session.version)
    assert world.gateway.asked == ["status"]


async def test_initialize_takes_an_unknown_word_as_no_denial(world: World) -> None:
    """A gateway with a word of its own does not deny the link: the session stays CONNECTED and the command ends so."""
    session = await settled(world.database)
    world.says(UnknownWord())
    await world.handle(initialize(session.chatbot_id))
    assert world.outputs.names == ["session.connected"]
    assert (await world.row(session.chatbot_id)).version == session.version
    assert world.gateway.asked == ["status"]


async def test_initialize_shows_the_qr_code_that_is_there(world: World) -> None:
    """A QR code that waits to be scanned is not replaced: the command ends in it."""
    session = await settled(world.database, status=S.QR_READY, qr_code="data:QR")
    world.says(S.QR_READY)
    await world.handle(initialize(session.chatbot_id))
    [event] = world.outputs.messages
    assert (event.name, event.qr_code) == ("session.qr_ready", "data:QR")
    assert world.gateway.asked == ["status"]


@pytest.mark.parametrize("answer", [UnknownSession(), S.DISCONNECTED, S.QR_READY])
async def test_initialize_leaves_connected_only_where_the_gateway_denies_it(world: World, answer: Reported | S) -> None:
    """A row that says CONNECTED against the gateway's word is opened anew, under the same session id."""
    session = await settled(world.database)
    world.says(answer)
    await world.handle(initialize(session.chatbot_id))
    row = await world.row(session.chatbot_id)
    assert (row.session_id, row.status) == (session.session_id, S.CONNECTING)
    assert world.gateway.asked == ["status", "initialize"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(GatewayUnreachable("away"), "gateway_unreachable"), (GatewayRefused("no", code="full"), "gateway_error")],
)
async def test_initialize_ends_in_disconnected_where_the_gateway_does_not_open(
    world: World, error: GatewayError, reason: str
) -> None:
    """One event with the reason, still wanted; the next command tries again, also where the status cannot be had."""
    chatbot_id = uuid4()
    world.gateway.refusal = error
    await world.handle(initialize(chatbot_id))
    [event] = world.outputs.messages
    assert (event.name, event.status_reason) == ("session.disconnected", reason)
    assert (await world.row(chatbot_id)).wanted
    world.gateway.refusal = None
    world.says(NoAnswer(error))
    await world.handle(initialize(chatbot_id), "again")
    assert world.outputs.names[1:] == ["session.connecting"]


async def test_a_strict_service_knows_its_chatbots(database: Database) -> None:
    """An unknown or removed chatbot gets no session and the gateway hears nothing; once registered it does."""
    world, chatbot_id = World(database, strict=True), uuid4()
    await world.handle(initialize(chatbot_id))
    [event] = world.outputs.messages
    assert (event.name, event.code) == ("command.rejected", "unknown_chatbot")
    assert await all_of(database, SessionRow) == []
    assert world.gateway.calls == []
    await world.handle(RegisterChatbot(chatbot_id=chatbot_id), "register")
    await world.handle(initialize(chatbot_id), "now")
    await world.handle(RemoveChatbot(chatbot_id=chatbot_id), "remove")
    await world.handle(initialize(chatbot_id), "later")
    assert world.outputs.names[1:] == [
        "chatbot.registered", "session.connecting", "session.disconnected", "chatbot.removed", "command.rejected"
    ]  # fmt: skip


# Disconnect, remove, register


@pytest.mark.parametrize("away", [None, GatewayUnreachable("away")])
async def test_disconnect_ends_the_wish(world: World, away: GatewayError | None) -> None:
    """Whatever the gateway says, nobody wants the session any more; a repetition under another id has no effect."""
    session = await settled(world.database)
    world.gateway.refusal = away
    await world.handle(DisconnectSession(chatbot_id=session.chatbot_id), "1")
    row = await world.row(session.chatbot_id)
    assert (row.status, row.status_reason, row.wanted) == (S.DISCONNECTED, "requested", False)
    assert world.gateway.calls == [f"disconnect {session.session_id}"]
    await world.handle(DisconnectSession(chatbot_id=session.chatbot_id), "2")
    assert (await world.row(session.chatbot_id)).version == row.version
    assert world.outputs.names == ["session.disconnected"] * 2
    assert [told.correlation_id for told in world.outputs.outputs] == ["1", "2"]
    assert len(set(world.outputs.ids)) == 2


async def test_disconnect_needs_a_session(world: World) -> None:
    """A chatbot without one is told so, and the gateway nothing."""
    await world.handle(DisconnectSession(chatbot_id=uuid4()))
    [event] = world.outputs.messages
    assert (event.name, event.code) == ("command.rejected", "no_session")
    assert world.gateway.calls == []


async def test_remove_ends_session_and_chatbot(world: World) -> None:
    """Both are told, the session first; one that is not known is removed all the same; register brings it back."""
    session = await settled(world.database)
    await world.handle(RemoveChatbot(chatbot_id=session.chatbot_id))
    await world.handle(RemoveChatbot(chatbot_id=uuid4()))
    assert world.outputs.names == ["session.disconnected", "chatbot.removed", "chatbot.removed"]
    assert world.gateway.asked == ["disconnect"]
    assert not await world.database.read(lambda tx: sessions.chatbot_is_known(tx, session.chatbot_id))
    await world.handle(RegisterChatbot(chatbot_id=session.chatbot_id), "back")
    assert world.outputs.names[3:] == ["chatbot.registered"]
    assert await world.database.read(lambda tx: sessions.chatbot_is_known(tx, session.chatbot_id))


async def test_a_command_without_an_id_is_no_command(world: World) -> None:
    """Doing it twice could not be told from doing it once: it is for the dead letters, and nothing was done."""
    chatbot_id = uuid4()
    for command in (
        initialize,
        lambda one: DisconnectSession(chatbot_id=one),
        lambda one: RemoveChatbot(chatbot_id=one),
    ):
        with pytest.raises(Undeliverable) as raised:
            await world.handle(command(chatbot_id), "")
        assert raised.value.code == "missing_id"
    assert (world.outputs.outputs, world.gateway.calls) == ([], [])
    assert await all_of(world.database, CommandRow) == []


async def test_a_repeated_command_is_answered_again(world: World) -> None:
    """Under the same id, also after its answer was confirmed, and from then on by its row; nothing is done twice."""
    command = initialize(uuid4())
    await world.handle(command)
    [answer] = world.outputs.take()
    marks = Confirmations(world.database)
    marks.note(answer.confirmation)
    await marks.flush()
    assert await rows_tell(world.database, command) == []
    await world.handle(command)
    assert world.outputs.outputs == [answer]
    assert await rows_tell(world.database, command) == [answer]
    assert world.gateway.asked == ["initialize"]


async def test_another_command_under_a_known_id_is_refused(world: World) -> None:
    """It is told so and nothing is done; the first keeps its outcome, also asked for at another time."""
    chatbot_id = uuid4()
    await world.handle(initialize(chatbot_id))
    row, first, asked = await world.row(chatbot_id), world.outputs.ids, list(world.gateway.asked)
    for command in (
        DisconnectSession(chatbot_id=chatbot_id),
        RemoveChatbot(chatbot_id=chatbot_id),
        InitializeSession(chatbot_id=chatbot_id, repair_of=row.version),
    ):
        world.outputs.take()
        for _ in range(2):
            await world.handle(command)
        event = world.outputs.messages[0]
        assert (event.name, event.code, event.command) == ("command.rejected", "id_reused", command.name)
        assert len(set(world.outputs.ids)) == 1
    after = await world.row(chatbot_id)
    assert (after.wanted, after.version, world.gateway.asked) == (True, row.version, asked)
    world.outputs.take()
    await world.handle(InitializeSession(chatbot_id=chatbot_id, requested_at=ASKED_AT))
    assert world.outputs.ids == first


# A crash at each step


async def a_new_initialize(_: World) -> Message:
    return initialize(uuid4())


async def a_refused_initialize(world: World) -> Message:
    world.gateway.refusal = GatewayUnreachable("away")
    return initialize(uuid4())


async def an_initialize_of_a_connected_session(world: World) -> Message:
    world.says(S.CONNECTED)
    return initialize((await settled(world.database)).chatbot_id)


async def a_rejected_initialize(world: World) -> Message:
    world.says(NoAnswer(GatewayUnreachable("away")))
    return initialize((await settled(world.database)).chatbot_id)


async def a_disconnect(world: World) -> Message:
    return DisconnectSession(chatbot_id=(await settled(world.database)).chatbot_id)


async def a_remove(world: World) -> Message:
    return RemoveChatbot(chatbot_id=(await settled(world.database)).chatbot_id)


async def a_connection_with_waiting_messages(world: World) -> Message:
    session = await settled(world.database, status=S.DISCONNECTED, phone_number=NUMBER)
    await enqueue(world.database, session)
    world.says(S.CONNECTED)
    return connected(session, NUMBER)


async def a_connection_with_another_number(world: World) -> Message:
    session = await settled(world.database, status=S.DISCONNECTED, phone_number=NUMBER)
    await enqueue(world.database, session)
    world.says(S.CONNECTED)
    return connected(session, OTHER)


async def an_end(world: World) -> Message:
    return disconnected(await settled(world.database), "logged_out")


@pytest.mark.parametrize("when_done", [False, True])
@pytest.mark.parametrize(
    "prepare",
    [
        a_new_initialize, a_refused_initialize, an_initialize_of_a_connected_session, a_rejected_initialize,
        a_disconnect, a_remove, a_connection_with_waiting_messages, a_connection_with_another_number, an_end,
    ],
)  # fmt: skip
async def test_a_crash_at_any_step_is_made_good(
    database: Database, prepare: Callable[[World], Awaitable[Message]], *, when_done: bool
) -> None:
    """Whatever call or commit was the last, the redelivered message ends as if undisturbed.

    What is told directly and what the rows tell is the same, and a command is answered by one event whenever it comes.
    """
    undisturbed = World(database)
    message = await prepare(undisturbed)
    await undisturbed.handle(message)
    expected = undisturbed.outputs.names
    assert set(undisturbed.outputs.ids) == {output.message_id for output in await rows_tell(database, message)}
    for step in range(1, undisturbed.steps.taken + 1):
        world = World(database)
        message = await prepare(world)
        world.steps.crash_at, world.steps.when_done = step, when_done
        with pytest.raises(CrashError):
            await world.handle(message)
        again = World(database)
        again.gateway.answers, again.gateway.refusal = world.gateway.answers, world.gateway.refusal
        await again.handle(message)
        told = world.outputs.outputs + again.outputs.outputs + await rows_tell(database, message)
        once = {output.message_id: output for output in told}
        assert sorted(output.message.name for output in once.values()) == sorted(expected), step
        assert len({(output.message_id, output.message.wire()) for output in told}) == len(once), step
        asked = world.gateway.asked + again.gateway.asked
        assert set(undisturbed.gateway.asked) <= set(asked) <= {*undisturbed.gateway.asked, "status"}, step
        silent = World(database)
        await silent.handle(message)
        answers = [output for output in once.values() if output.confirmation.table is CommandRow]
        assert (silent.outputs.outputs, len(answers)) == (answers, isinstance(message, Command)), step
        assert "initialize" not in silent.gateway.asked, step


async def rows_tell(database: Database, message: Message) -> list[Output]:
    """Return what is still to be told of everything that has a message's partition key."""
    hashed = key_hash(message.partition_key)
    outputs: list[Output] = []
    for table, of in (
        (MessageRow, row_outputs.event_of),
        (SessionRow, row_outputs.of_session),
        (CommandRow, row_outputs.of_command),
    ):
        for row in await all_of(database, table, key_hash=hashed):
            outputs += of(row)
    return outputs
