"""A connection that could not be opened leaves nothing behind that has to be closed later, in whatever thread."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest
from aio_pika import Connection

from service.messaging import topology
from service.messaging.connections import connect
from service.messaging.listening import Listener
from service.messaging.partitions import Partition
from service.messaging.publishing import Publisher
from service.operating import comparing
from service.tasks import end
from tests.system import eventually


async def _publisher(url: str) -> None:
    publisher = Publisher(url, partitions=2)
    assert not await publisher.ping()
    await publisher.close()


async def _partition(url: str) -> None:
    queue, changed = topology.declared_queue(topology.DEAD_LETTERS), asyncio.Event()
    await Partition(url, queue, lambda _: None, changed, prefetch=1).start()


async def _listener(url: str) -> None:
    listener = Listener(url, 2, lambda *_: None, declares=False)
    await listener._listen()  # one attempt of those that it goes on making


OPENS: dict[str, Callable[[str], Awaitable[object]]] = {
    "a connection": connect,
    "the topology": lambda url: topology.declare(url, 2),
    "a comparison": lambda url: comparing.compare(url, 2),
    "a publisher": _publisher,
    "a partition": _partition,
    "a listener": _listener,
}


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _refused(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("away", ["nobody listens", "hangs up"])
@pytest.mark.parametrize("what", OPENS)
@pytest.mark.usefixtures("_without_collector")
async def test_what_could_not_be_opened_is_let_go_of_at_once(what: str, away: str) -> None:
    """The garbage collector, in a thread of the database's driver, would find it and close it where no loop is."""
    async with await asyncio.start_server(_refused, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        if away == "nobody listens":
            server.close()
        with contextlib.suppress(Exception):
            await OPENS[what](f"amqp://guest:guest@127.0.0.1:{port}/")
        await asyncio.sleep(0)  # the connection closes itself in the loop's next turn
        assert [known for known in gc.get_objects() if isinstance(known, Connection)] == []


@pytest.mark.parametrize("what", ["a publisher", "a partition", "a listener"])
@pytest.mark.usefixtures("_without_collector")
async def test_what_is_cancelled_while_it_connects_leaves_nothing(what: str) -> None:
    """No task, which would take no cancellation and keep the process from its end, and nothing to be closed later."""
    accepted = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1") as server:
        before = asyncio.all_tasks()

        async def left() -> set[asyncio.Task[object]]:
            return asyncio.all_tasks() - before

        url = f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        opening = asyncio.ensure_future(OPENS[what](url))
        connecting = asyncio.ensure_future(accepted.wait())
        await asyncio.wait([opening, connecting], return_when=asyncio.FIRST_COMPLETED)
        assert accepted.is_set()
        await end([opening])
        del opening
        await eventually(left, lambda tasks: not tasks)
        assert [known for known in gc.get_objects() if isinstance(known, Connection)] == []
