import shutil, pytest, asyncio, aio_pika
from dataclasses import replace
from tests.faults.test_mutants import SMALL, NO_SWEEPER, of_the_menu, REFUSED
from tests.faults import run as running
from tests.faults.run import run
from tests.faults.stage import Stage
from tests.faults import facts as F


@pytest.mark.fault
@pytest.mark.parametrize("n", range(4))
async def test_unsure(n, breakable_broker, tmp_path, monkeypatch):
    kept = {}
    original = Stage.facts

    async def facts(self):
        queues = await self.broker.ctl(
            "-q",
            "list_queues",
            "-p",
            self.broker_url.rpartition("/")[2],
            "name",
            "messages",
            "messages_ready",
            "messages_unacknowledged",
            "consumers",
        )
        found = await original(self)
        missing = set(self.ledger.poison) - set(found.dead)
        if missing:
            print("MISSING", missing, [(i, p) for i, p in enumerate(self.ledger.poison)], found.dead, queues)
            for p in self.system.processes:
                for line in p.log().splitlines():
                    if any(m in line for m in missing):
                        print(p.name, line[:400])
            shutil.copytree(self.system.folder, f"/tmp/kept-{n}", dirs_exist_ok=True)
        return found

    monkeypatch.setattr(Stage, "facts", facts)
    out = await run(breakable_broker, None, tmp_path, REFUSED, size=replace(SMALL, patience=30), **NO_SWEEPER)
    print("settled", out.settled_after)
    assert out.verdict.faults == []
