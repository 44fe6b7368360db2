"""The number of partitions in the database: who writes it, who refuses, and that none can change it beside another."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from service import apps
from service.errors import ConfigurationError, DatabaseUnavailable
from service.ingress.agreeing import Agreement
from service.persistence import deployment
from service.persistence.database import Database
from service.persistence.heartbeats import Heartbeats
from service.persistence.tables import DeploymentRow, ProcessRow
from service.settings import Settings
from tests.component.rows import all_of
from tests.component.test_heartbeats import aged
from tests.system import SECONDS


async def number(database: Database) -> list[int]:
    return [row.partitions for row in await all_of(database, DeploymentRow)]


def heartbeats(database: Database, partitions: int, process_id: str = "a") -> Heartbeats:
    return Heartbeats(database, process_id, "whatsapp-qr.sessions", 10, partitions=partitions)


async def repartition(database: Database, partitions: int) -> None:
    await database.transact(partial(deployment.repartition, partitions=partitions, live_seconds=15))


async def test_the_first_writes_it_and_others_have_to_agree(database: Database) -> None:
    """By `migrate` or by the first beat; a consumer with another number has no row and may not consume."""
    await heartbeats(database, 4).beat([])
    assert await number(database) == [4]
    with pytest.raises(ConfigurationError, match="PARTITIONS is 6 here, and 4 in the database") as refused:
        await heartbeats(database, 6, "b").beat([])
    assert refused.value.code == "partitions_differ"
    assert "PARTITIONS=4" in refused.value.detail
    assert {row.id for row in await all_of(database, ProcessRow)} == {"a"}


async def test_who_only_asks_writes_nothing(database: Database) -> None:
    """An ingress or an operator's command with any number, as long as there is none."""
    await database.read(partial(deployment.check, partitions=6))
    assert await number(database) == []
    await database.transact(partial(deployment.agree, partitions=4))
    await database.read(partial(deployment.check, partitions=4))
    with pytest.raises(ConfigurationError, match="4 in the database"):
        await database.read(partial(deployment.check, partitions=6))


async def test_it_changes_only_while_no_consumer_lives(database: Database) -> None:
    """A live one is named; one that is told to stop, or was killed long enough ago, is in nobody's way."""
    await heartbeats(database, 4).beat([])
    with pytest.raises(ConfigurationError, match=r"whatsapp-qr\.sessions \([01] s ago\)") as refused:
        await repartition(database, 6)
    assert refused.value.code == "consumers_live"
    assert await number(database) == [4]
    await aged(database, "a", 16)
    await repartition(database, 6)
    assert await number(database) == [6]
    with pytest.raises(ConfigurationError, match="6 in the database"):  # it only stood still
        await heartbeats(database, 4).beat([])
    await heartbeats(database, 6, "b").beat([])
    await heartbeats(database, 6, "b").remove()
    await repartition(database, 2)
    assert await number(database) == [2]


async def test_who_is_cut_off_lives_all_the_same(database: Database) -> None:
    """A consumer without a broker takes no partition, and PARTITIONS does not change under it; it asks at each beat."""
    await heartbeats(database, 4).stand_by()
    assert await heartbeats(database, 4, "b").beat([0]) == []
    await heartbeats(database, 4, "b").remove()
    with pytest.raises(ConfigurationError, match=r"whatsapp-qr\.sessions \(cut off\)"):
        await repartition(database, 6)
    await aged(database, "a", 16)
    await repartition(database, 6)
    with pytest.raises(ConfigurationError, match="6 in the database"):
        await heartbeats(database, 4).stand_by()


async def test_a_new_database_gets_it_by_the_same_command(database: Database) -> None:
    """Also one that was restored from before there was a number."""
    await repartition(database, 6)
    assert await number(database) == [6]


async def test_a_start_and_a_change_at_once_exclude_each_other(database: Database, other_process: Database) -> None:
    """Whichever comes first: never does a consumer begin with a number that was changed beside it."""
    for turn in range(20):
        before, after = (4, 6) if turn % 2 == 0 else (6, 4)
        if turn == 0:
            await database.transact(partial(deployment.agree, partitions=before))
        starting = heartbeats(database, before, f"p{turn}")
        results = await asyncio.gather(starting.beat([]), repartition(other_process, after), return_exceptions=True)
        refused = [isinstance(result, ConfigurationError) for result in results]
        assert sum(refused) == 1, results
        assert await number(database) == ([before] if refused[1] else [after])
        if refused[1]:
            await starting.remove()
            await repartition(database, after)


@pytest.mark.parametrize("agrees", [True, False])
async def test_an_ingress_asks_until_the_database_answers(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, agrees: bool
) -> None:
    """It starts without one; as soon as it has the answer the check ends, and the process too where they differ."""
    await database.transact(partial(deployment.agree, partitions=4))
    read, away = database.read, iter(range(2))

    async def sometimes(work: Any, **more: Any) -> Any:
        if next(away, None) is not None:
            detail = "away"
            raise DatabaseUnavailable(detail)
        return await read(work, **more)

    ended: list[str] = []
    ending: Any = SimpleNamespace(because=lambda error: ended.append(error.code))
    monkeypatch.setattr(database, "read", sometimes)
    agreement = Agreement(database, 4 if agrees else 6, ending)
    agreement.start()
    async with asyncio.timeout(SECONDS):
        while agreement.alive:  # its end is the signal
            await asyncio.sleep(0.01)
    assert ended == ([] if agrees else ["partitions_differ"])


async def test_migrate_writes_it_and_changes_it_where_asked(migrated_url: str, database: Database) -> None:
    """As the command does: another number is refused unless it is asked for."""
    migrate = partial(asyncio.to_thread, apps.migrate)
    await migrate(Settings(database_url=migrated_url, partitions=6))
    assert await number(database) == [6]
    with pytest.raises(ConfigurationError, match="6 in the database"):
        await migrate(Settings(database_url=migrated_url, partitions=8))
    await migrate(Settings(database_url=migrated_url, partitions=8), repartition=True)
    assert await number(database) == [8]
