"""What replaying and discarding does to the table, on both databases, with a broker that only records."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from service.domain.dead_letters import DeadLetter, Original
from service.errors import BrokerUnavailable, Undeliverable
from service.operating.dead_letters import DeadLetters, Result, Selection
from service.persistence import dead_letters
from service.persistence.database import Database
from service.persistence.dead_letters import DeadLetters as Table
from service.persistence.tables import DeadLetterRow
from tests.component.ingress_app import Recorder
from tests.component.rows import all_of
from whatsapp_qr_contracts.gateway import GatewayMessage, GatewayQr

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REPORT = {"sessionId": "s", "from": "5491112345678", "message": "hi", "messageId": "A1", "timestamp": "1700000000"}
QR = {"type": "qr", "sessionId": "s", "data": {"qrCode": "data:image/png;base64,AAAA"}}


@dataclass
class Replayer:
    """Takes originals, unless they have no way back or the broker is away."""

    back: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    away: bool = False

    async def put_back(self, original: Original) -> None:
        if self.away:
            raise BrokerUnavailable("away")
        message_id = original.text("messageId")
        if message_id in self.refused:
            raise Undeliverable("no way back", code="unroutable")
        self.back.append(message_id)


class Desk:
    """An operator with a table of dead letters."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.replayer, self.broker = Replayer(), Recorder()
        self.dead_letters = DeadLetters(database, self.broker, self.replayer)  # type: ignore[arg-type]

    async def store(self, message_id: str, day: int = 1, *, body: bytes = b"x", **fields: Any) -> str:
        exchange = "" if "source" in fields else "whatsapp-qr.commands"
        original = Original(body, exchange, "key", {"messageId": message_id}, {})
        defaults: dict[str, Any] = {
            "reason": "r",
            "detail": "",
            "source": "queue",
            "death_id": "b",
            "redelivered": False,
        }
        death = DeadLetter(original, died_at=AT.replace(day=day), **(defaults | fields))
        await Table(self.database).keep(death)
        return str(death.id)

    async def replay(self, *ids: str, reason: str | None = None, dry_run: bool = False) -> list[Result]:
        return [one async for one in self.dead_letters.replay(Selection(ids, reason), dry_run=dry_run)]

    async def discard(self, *ids: str, reason: str | None = None, dry_run: bool = False) -> list[Result]:
        return [one async for one in self.dead_letters.discard(Selection(ids, reason), dry_run=dry_run)]

    async def replayed(self) -> set[str]:
        rows = await all_of(self.database, DeadLetterRow)
        return {row.message_id for row in rows if row.replayed_at is not None}


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


async def test_all_go_back_in_the_order_of_their_deaths(desk: Desk) -> None:
    """Those that were replayed before do not go again, unless they are named."""
    last, first, middle = await desk.store("3", 3), await desk.store("1", 1), await desk.store("2", 2)
    assert await desk.replay(middle) == [Result(middle, "replayed")]
    assert await desk.replay() == [Result(first, "replayed"), Result(last, "replayed")]
    assert desk.replayer.back == ["2", "1", "3"]
    assert await desk.replay() == []
    assert await desk.replay(middle, middle) == [Result(middle, "replayed")]
    assert await desk.replayed() == {"1", "2", "3"}


async def test_very_many_go_back_page_by_page(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; what dies again meanwhile is left for the next time."""
    monkeypatch.setattr(dead_letters, "PAGE", 2)
    names = dict(zip("abcde", (1, 1, 1, 2, 3), strict=True))
    ids = {await desk.store(name, day): name for name, day in names.items()}
    replayed: list[str] = []
    async for one in desk.dead_letters.replay(Selection(), dry_run=False):
        replayed.append(ids[one.id])
        await desk.store(ids[one.id], 9, death_id="again")
    assert (sorted(replayed[:3]), replayed[3:]) == (["a", "b", "c"], ["d", "e"])
    assert len(await desk.replay()) == len(ids)


async def test_a_reason_chooses(desk: Desk) -> None:
    """For replay and discard."""
    await desk.store("1", reason="a")
    other = await desk.store("2", reason="b")
    assert await desk.replay(reason="b") == [Result(other, "replayed")]
    assert await desk.discard(reason="b") == [Result(other, "discarded")]
    assert [row.message_id for row in await all_of(desk.database, DeadLetterRow)] == ["1"]


async def test_a_dry_run_changes_nothing(desk: Desk) -> None:
    """It says what would be done."""
    one = await desk.store("1")
    assert await desk.replay(dry_run=True) == [Result(one, "would be replayed")]
    assert await desk.discard(one, dry_run=True) == [Result(one, "would be discarded")]
    assert desk.replayer.back == []
    assert await desk.replayed() == set()


async def test_what_has_no_way_back_stays_and_the_others_go(desk: Desk) -> None:
    """Each has a result of its own; an id that nothing has is one too."""
    first, second = await desk.store("1", 1), await desk.store("2", 2)
    desk.replayer.refused = {"1"}
    results = await desk.replay(first, "zz", second)
    assert [(result.outcome, result.failed) for result in results] == [
        ("failed", True),
        ("failed", True),
        ("replayed", False),
    ]
    assert results[0].detail == "unroutable: no way back"
    assert await desk.replayed() == {"2"}


async def test_what_was_not_confirmed_is_not_noted(desk: Desk) -> None:
    """Without a broker the row waits for the next replay."""
    await desk.store("1")
    desk.replayer.away = True
    with pytest.raises(BrokerUnavailable):
        await desk.replay()
    assert await desk.replayed() == set()


@pytest.mark.parametrize(("path", "body", "kind"), [("incoming", REPORT, GatewayMessage), ("webhook", QR, GatewayQr)])
async def test_a_callback_becomes_the_report_that_the_ingress_makes(
    desk: Desk, path: str, body: dict[str, Any], kind: type[Any]
) -> None:
    """Under one id however often it is replayed."""
    one = await desk.store("", source=f"/whatsapp-qr/{path}", body=json.dumps(body).encode())
    for _ in range(2):
        assert await desk.replay(one) == [Result(one, "replayed")]
    ids = {"message_id": one, "correlation_id": one}
    assert desk.broker.published == [(kind.model_validate(body), ids)] * 2


@pytest.mark.parametrize("body", [b"", b"no json", b"{}", b"[1]", b'{"type": "qr"}', b"[" * 100_000, b"\xff"])
async def test_a_callback_that_is_still_no_good_stays(desk: Desk, body: bytes) -> None:
    """With what is wrong about it."""
    one = await desk.store("", source="/whatsapp-qr/webhook", body=body)
    [result] = await desk.replay(one)
    assert result.failed
    assert result.detail.startswith("invalid_callback: ")
    assert (desk.broker.published, await desk.replayed()) == ([], set())
