"""The private servers of deploy/local: they start, stop without a trace, and keep their data through a kill."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import psutil
import pytest

from tests.conftest import NEW_SERVERS
from tests.servers import START_TIMEOUT, Broker, Postgres, PrivateServer, speaks_amqp, speaks_postgres


def processes_of(server: PrivateServer) -> list[str]:
    """List the running processes that were started for a server: its folder or a port is in their arguments."""
    marks = {str(server.folder / "server"), *map(str, server.ports)}
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(mark in line for mark in marks):
            found.append(line)
    return found


def listeners_of(server: PrivateServer) -> list[Any]:
    """List the addresses on the ports of a server at which somebody listens."""
    return [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in server.ports
    ]


@pytest.fixture
async def node() -> AsyncIterator[PrivateServer]:
    server = PrivateServer("rabbitmq.sh", speaks_amqp, ports=3)
    yield server
    await server.close()


@pytest.fixture
async def cluster() -> AsyncIterator[PrivateServer]:
    server = PrivateServer("postgres.sh", speaks_postgres)
    yield server
    await server.close()


async def test_the_servers_have_the_versions_that_are_named(amqp_url: str, postgres_url: str) -> None:
    """SERVERS=new means RabbitMQ 4 and PostgreSQL 17, never silently the servers of this machine."""
    async with await aio_pika.connect(amqp_url) as broker:
        assert broker.transport is not None
        rabbitmq = str(broker.transport.connection.server_properties["version"])
    database = await asyncpg.connect(postgres_url)
    postgresql = database.get_server_version().major
    await database.close()
    assert tuple(map(int, rabbitmq.split(".")[:2])) >= ((4, 0) if NEW_SERVERS else (3, 10))
    assert postgresql >= (17 if NEW_SERVERS else 15)


async def test_a_node_listens_on_loopback_only_and_stops_without_a_trace(node: PrivateServer) -> None:
    """Neither node nor epmd, process nor port outlives a stop; while it runs, only this machine reaches it."""
    await node.start()
    addresses = listeners_of(node)
    assert {address.port for address in addresses} == set(node.ports)
    assert {address.ip for address in addresses} <= {"127.0.0.1", "::1"}

    await node.stop()

    assert processes_of(node) == []
    assert listeners_of(node) == []


async def test_a_killed_node_starts_again_with_its_data(node: PrivateServer) -> None:
    """A confirmed persistent message outlives kill -9 of the node, its script and its epmd."""
    await node.start()
    url = f"amqp://guest:guest@127.0.0.1:{node.port}/"
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(b"still here", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="kept")
    # Without this, a single node forgets a quorum queue that was declared in its last second or two (RabbitMQ's
    # directory of queues is written with a delay); what is confirmed on a known queue is on disk.
    await node.run("rabbitmqctl", "eval", "[dets:sync(Table) || Table <- dets:all()], ok.")

    await node.kill()
    await node.start()

    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        received = await queue.get(timeout=60)
        assert received is not None
        assert received.body == b"still here"


async def test_a_node_whose_script_was_killed_is_replaced(node: PrivateServer) -> None:
    """Only the script dies: node and epmd hold port and data, and the next start takes both over."""
    await node.start()
    script = node._process
    assert script is not None
    pid_file = node.folder / "server" / "rabbitmq.pid"
    orphan = pid_file.read_text()
    script.kill()
    script.wait()
    assert await speaks_amqp(node.port)

    await node.start()
    async with asyncio.timeout(START_TIMEOUT):
        while not pid_file.exists() or pid_file.read_text() in {"", orphan} or not await speaks_amqp(node.port):
            await asyncio.sleep(0.1)
    await node.stop()

    assert processes_of(node) == []
    assert listeners_of(node) == []


async def test_a_cluster_keeps_its_data_through_stop_and_kill(cluster: PrivateServer) -> None:
    """What was committed is there after a clean stop and after kill -9; nothing outlives the last stop."""
    url = f"postgresql://postgres@127.0.0.1:{cluster.port}/postgres"
    await cluster.start()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept (n integer)")
    await connection.execute("INSERT INTO kept VALUES (1)")
    await connection.close()

    await cluster.stop()
    await cluster.start()
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO kept VALUES (2)")
    await connection.close()
    await cluster.kill()
    await cluster.start()

    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM kept") == 2
    await connection.close()
    await cluster.stop()
    assert processes_of(cluster) == []
    assert listeners_of(cluster) == []


async def test_each_test_gets_an_empty_broker_and_database(
    clean_broker: str, amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """The fixtures give places of the test's own."""
    assert clean_broker.startswith(amqp_url)
    assert clean_broker != amqp_url
    assert database_url.startswith(("sqlite+aiosqlite:///" + str(tmp_path), "postgresql+asyncpg://"))
    async with await aio_pika.connect(clean_broker) as connection:
        await (await connection.channel()).declare_queue("whatsapp-qr.sessions", durable=True)


async def test_a_test_may_stop_and_start_a_broker_and_a_database(
    breakable_broker: Broker, breakable_postgres: Postgres
) -> None:
    """The breakable servers come back on the same port with the same data."""
    await asyncio.gather(breakable_broker.stop(), breakable_postgres.stop())
    assert not await breakable_broker.answers()
    assert not await breakable_postgres.answers()
    await asyncio.gather(breakable_broker.start(), breakable_postgres.start())
    async with await aio_pika.connect(breakable_broker.url) as connection:
        await connection.channel()
    await breakable_postgres.drop_database(await breakable_postgres.create_database())
