"""The reconciler on both databases: what it puts into the sessions' queue, and that it writes nothing itself."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service import metrics
from service.domain.reconciling import Patience
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.errors import GatewayError, GatewayUnreachable
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from service.singletons import reconciler
from service.singletons.reconciler import Reconciler
from service.singletons.watching import Watch
from tests.component.rows import all_of, change, claimed, enqueue
from tests.component.standins import in_state, settled
from whatsapp_qr_contracts.message import Message, SessionStatus

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
CONNECTED, QR_READY = SessionStatus.CONNECTED, SessionStatus.QR_READY
CONNECTING, DISCONNECTED = SessionStatus.CONNECTING, SessionStatus.DISCONNECTED


@dataclass
class Gateway:
    """A gateway that says what a test writes down."""

    says: dict[str, Reported] = field(default_factory=dict)
    list_of: dict[str, Reported] = field(default_factory=dict)
    has_list: bool = True
    qr_codes: dict[str, str | GatewayError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None
    """Happens elsewhere after the first look."""

    async def sessions(self) -> dict[str, Reported] | None:
        if not self.has_list:
            return None
        if self.list_of:
            return self.list_of
        return {name: said for name, said in self.says.items() if not isinstance(said, NoAnswer)}

    async def status(self, session_id: str) -> Reported:
        self.asked.append(session_id)
        return self.says.get(session_id, UnknownSession())

    async def qr_code(self, session_id: str) -> str | None:
        if isinstance(code := self.qr_codes.get(session_id), GatewayError):
            raise code
        return code


class Broker:
    """Keeps what is published, with its id and what caused it."""

    def __init__(self) -> None:
        self.out: list[tuple[Message, str, str]] = []

    async def publish(self, message: Message, *, message_id: str, correlation_id: str) -> None:
        self.out.append((message, message_id, correlation_id))


class World:
    """A reconciler between a gateway and a broker that a test can look at."""

    def __init__(self, database: Database) -> None:
        self.database, self.broker, self.gateway = database, Broker(), Gateway()
        patience = Patience(passing=60, stuck=0)
        parts: Any = (self.gateway, self.broker)
        self.reconciler = Reconciler(database, *parts, patience=patience, pause=0)

    def says(self, session: SessionRow, status: SessionStatus, **fields: Any) -> None:
        self.gateway.says[session.session_id] = in_state(status, **fields)

    async def outcome(self) -> list[dict[str, Any]]:
        """Run once; return what was published, without empty fields."""
        before = await all_of(self.database, SessionRow)
        self.broker.out.clear()
        await self.reconciler.run()
        if self.gateway.meanwhile is None:
            assert await all_of(self.database, SessionRow) == before
        return [
            {"name": message.name, **message.model_dump(mode="json", by_alias=True, exclude_none=True)}
            for message, *_ in self.broker.out
        ]


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def counted(step: str) -> float:
    return metrics.REDRIVEN.labels(f"session_{step}")._value.get()


async def test_all_well_is_left_alone(world: World) -> None:
    """Sessions on which both agree, and sessions of others at the gateway, cause nothing, not even a question."""
    session = await settled(world.database, status=CONNECTED)
    idle = await settled(world.database, status=DISCONNECTED, wanted=False)
    world.says(session, CONNECTED)
    world.gateway.says["foreign"] = OtherState(QR_READY)
    assert await world.outcome() == []
    assert world.gateway.asked == []
    assert idle.session_id not in world.gateway.says


async def test_a_missed_connection_is_reported(world: World) -> None:
    """`connected` with the number that the gateway gives, as its callback would have said, with an id of its own."""
    session = await settled(world.database, status=QR_READY)
    world.says(session, CONNECTED, number="5491100000000")
    before = counted("connected")
    [report] = await world.outcome()
    assert (report["name"], report["sessionId"]) == ("gateway.connected", session.session_id)
    assert report["data"] == {"phoneNumber": "5491100000000"}
    [(_, message_id, cause)] = world.broker.out
    assert message_id == cause
    assert counted("connected") == before + 1


@pytest.mark.parametrize(("status", "reason"), [(CONNECTED, {}), (QR_READY, {"reason": "qr_expired"})])
async def test_a_missed_end_is_reported(world: World, status: SessionStatus, reason: dict[str, str]) -> None:
    """`disconnected`: after a QR code that was not scanned with that reason, so that no code is shown to nobody."""
    session = await settled(world.database, status=status)
    world.says(session, DISCONNECTED)
    [report] = await world.outcome()
    assert (report["name"], report["data"]) == ("gateway.disconnected", reason)


async def test_a_missed_qr_code_is_fetched(world: World) -> None:
    """The code comes from /status, or from /qr-code where that has none; without any there is nothing to report."""
    session = await settled(world.database, status=CONNECTING)
    world.says(session, QR_READY)
    assert await world.outcome() == []
    world.gateway.qr_codes[session.session_id] = "data:image/png;base64,AAAA"
    [report] = await world.outcome()
    assert (report["name"], report["data"]) == ("gateway.qr", {"qrCode": "data:image/png;base64,AAAA"})


@pytest.mark.parametrize(("status", "seconds"), [(CONNECTED, 61.0), (QR_READY, 0.0)])
async def test_a_session_that_the_gateway_lost_is_initialized(
    world: World, status: SessionStatus, seconds: float
) -> None:
    """A wanted session that the gateway does not know is asked for anew, a connected one after a minute of that."""
    at = 0.0
    world.reconciler._says = Watch(lambda: at)
    session = await settled(world.database, status=status)
    if seconds:
        assert await world.outcome() == []
    at = seconds
    [command] = await world.outcome()
    assert (command["name"], command["chatbotId"]) == ("session.initialize", str(session.chatbot_id))
    assert command["repairOf"] == session.version


async def test_an_outage_of_the_gateway_is_no_absence_of_a_session(world: World) -> None:
    """It lists nothing, is away, and comes back listing nothing yet: the minute begins anew."""
    at = 0.0
    world.reconciler._says = Watch(lambda: at)
    await settled(world.database, status=CONNECTED)
    assert await world.outcome() == []
    listing = world.gateway.sessions

    async def away() -> None:
        detail = "no gateway"
        raise GatewayUnreachable(detail)

    at, world.gateway.sessions = 60.0, away  # type: ignore[assignment,method-assign]
    with pytest.raises(GatewayUnreachable):
        await world.reconciler.run()
    at, world.gateway.sessions = 240.0, listing  # type: ignore[method-assign]
    assert await world.outcome() == []
    at = 301.0
    assert [message["name"] for message in await world.outcome()] == ["session.initialize"]


async def test_a_passing_state_is_left_alone_while_it_is_young(world: World) -> None:
    """CONNECTING is looked at after a minute, by the database's clock."""
    session = await settled(world.database, status=CONNECTING)
    world.says(session, CONNECTING)
    assert await world.outcome() == []
    await change(world.database, session, moved_at=LONG_AGO)
    assert [message["name"] for message in await world.outcome()] == ["session.initialize"]


async def test_a_login_may_still_show_the_code_that_was_scanned(world: World) -> None:
    """A gateway that says CONNECTING with a QR code, and with another one later, logs in all the same."""
    at = 0.0
    world.reconciler._says = Watch(lambda: at)
    session = await settled(world.database, status=QR_READY, moved_at=LONG_AGO)
    world.gateway.says[session.session_id] = OtherState(CONNECTING, "data:x")
    assert await world.outcome() == []
    at = 61.0
    world.gateway.says[session.session_id] = OtherState(CONNECTING, "data:y")
    assert [message["name"] for message in await world.outcome()] == ["session.initialize"]


async def test_a_login_after_a_scan_is_left_alone_while_it_is_young(world: World) -> None:
    """However old the scanned code is: the gateway must have been seen to connect for a minute, with the same row."""
    at = 0.0
    world.reconciler._says = Watch(lambda: at)
    session = await settled(world.database, status=QR_READY, moved_at=LONG_AGO)
    world.says(session, CONNECTING)
    assert await world.outcome() == []
    at = 59.0
    assert await world.outcome() == []
    await change(world.database, session, version=session.version + 1)
    at = 61.0
    assert await world.outcome() == []
    at = 121.0
    assert [message["name"] for message in await world.outcome()] == ["session.initialize"]


async def test_the_second_look_must_last_as_well(world: World) -> None:
    """A code that hung for long and is scanned between the two looks is a login that has just begun."""
    at = 0.0
    world.reconciler._says = Watch(lambda: at)
    session = await settled(world.database, status=QR_READY, qr_code="data:x", moved_at=LONG_AGO)
    world.gateway.list_of = {session.session_id: OtherState(QR_READY, "data:x")}
    world.says(session, CONNECTING)
    assert await world.outcome() == []
    at = 61.0
    assert await world.outcome() == []
    assert world.gateway.asked == [session.session_id] * 2


async def test_everybody_gets_a_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are refused at every attempt do not keep the others from being mended, however many they are."""
    monkeypatch.setattr(reconciler, "_STEPS", 1)
    lost = {str((await settled(world.database, status=QR_READY)).chatbot_id) for _ in range(3)}
    for _ in range(100):
        world.reconciler._taken.clear()  # time has passed, and nothing has come of it
        [command] = await world.outcome()
        lost.discard(command["chatbotId"])
        if not lost:
            break
    assert not lost


async def test_what_nobody_wants_is_ended(world: World) -> None:
    """A session that lives at the gateway after a disconnect that it did not hear of is reported as connected."""
    session = await settled(world.database, status=DISCONNECTED, wanted=False)
    world.says(session, QR_READY)
    assert [message["name"] for message in await world.outcome()] == ["gateway.connected"]


async def test_what_has_just_changed_is_left_alone(world: World) -> None:
    """A session that moved between the two looks, or on which the gateway agrees at the second, is not touched."""
    moved, agreed = await settled(world.database, status=QR_READY), await settled(world.database, status=QR_READY)
    world.gateway.list_of = {one.session_id: Connected() for one in (moved, agreed)}
    world.says(agreed, QR_READY)
    world.says(moved, CONNECTED)

    async def survey(names: Any) -> Any:
        found = await looked(names)
        return [replace(one, version=one.version + 1) if one.session_id == moved.session_id else one for one in found]

    looked = world.reconciler._survey
    looks = [looked, survey]

    async def look(names: Any) -> Any:
        return await looks.pop(0)(names)

    world.reconciler._survey = look  # type: ignore[method-assign]
    assert await world.outcome() == []
    assert world.gateway.asked == [agreed.session_id]


async def test_without_a_list_every_session_is_asked_for(world: World) -> None:
    """A gateway that has no /sessions is asked about each session that may live there."""
    lost, well = await settled(world.database, status=QR_READY), await settled(world.database, status=CONNECTED)
    gone = await settled(world.database, status=DISCONNECTED, wanted=False, moved_at=LONG_AGO)
    world.gateway.has_list = False
    world.says(well, CONNECTED)
    [command] = await world.outcome()
    assert command["chatbotId"] == str(lost.chatbot_id)
    assert set(world.gateway.asked) == {lost.session_id, well.session_id}
    assert gone.session_id not in world.gateway.asked


async def test_nothing_is_decided_about_what_the_gateway_does_not_say(world: World) -> None:
    """An error or a word of its own in the answer about one session leaves it alone; the others are mended."""
    silent, odd, lost = [await settled(world.database, status=QR_READY) for _ in range(3)]
    blind, away = await settled(world.database, status=CONNECTING), GatewayUnreachable("no")
    world.gateway.list_of = {odd.session_id: UnknownWord(), blind.session_id: OtherState(QR_READY)}
    world.gateway.says = world.gateway.list_of | {silent.session_id: NoAnswer(away)}
    world.gateway.qr_codes[blind.session_id] = away
    [command] = await world.outcome()
    assert command["chatbotId"] == str(lost.chatbot_id)


async def test_an_unreachable_gateway_decides_nothing(world: World) -> None:
    """Where the list cannot be had, no session is touched."""
    await settled(world.database, status=CONNECTED)

    async def away() -> None:
        detail = "no gateway"
        raise GatewayUnreachable(detail)

    world.gateway.sessions = away  # type: ignore[assignment,method-assign]
    with pytest.raises(GatewayUnreachable):
        await world.reconciler.run()
    assert world.broker.out == []


async def test_a_step_is_not_repeated_while_it_may_wait_in_the_queue(world: World) -> None:
    """The same finding at the same version goes out once, and again where nothing has come of it for long."""
    session = await settled(world.database, status=QR_READY)
    world.says(session, CONNECTED)
    assert len(await world.outcome()) == 1
    assert await world.outcome() == []
    world.reconciler._taken = {what: at - 121 for what, at in world.reconciler._taken.items()}
    assert len(await world.outcome()) == 1
    await change(world.database, session, version=session.version + 1)
    assert len(await world.outcome()) == 1


async def test_sends_in_vain_are_shown(world: World) -> None:
    """A connected session whose first message has been tried and stays is marked, and unmarked once it has gone."""
    session = await settled(world.database, status=CONNECTED)
    message = await enqueue(world.database, session)
    world.says(session, CONNECTED)
    assert await world.outcome() == []
    await claimed(world.database, session)
    [report] = await world.outcome()
    assert (report["name"], report["data"]) == ("gateway.connected", {"reason": "action_required"})
    await change(world.database, session, status_reason="action_required")
    assert await world.outcome() == []
    await change(world.database, message, delivery_status="SENT")
    [report] = await world.outcome()
    assert (report["name"], report["data"]) == ("gateway.connected", {})
