"""Each process with a broker user of its own: all works, and what it need not do RabbitMQ refuses."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from service.domain.dead_letters import Original
from service.errors import Undeliverable
from service.messaging import topology
from service.operating import rights
from service.operating.replaying import Replayer
from tests.allowed import ALLOWED, COMMANDS, DEAD_LETTERS, EVENTS, EXCHANGES, GATEWAY, JOBS
from tests.amqp import Amqp
from tests.operator import Answer, listed, operate
from tests.servers import Broker
from tests.system import CONSUMERS, System, eventually

PASSWORDS = {user: f"the-password-of-{user}" for user in ALLOWED}
CUSTOMER = "5491112345678"
PRODUCTION = {"DECLARE_TOPOLOGY": "false", "SEND_RATE": "1000", "SEND_BURST": "1000"}
QUEUES = {queue.name for queue in topology.queues(2)}


def url_of(broker: Broker, user: str) -> str:
    """URL of the virtual host in use for one of the users."""
    return broker.url.replace("guest:guest", f"{user}:{PASSWORDS[user]}")


@pytest.fixture
async def broker(shared_broker: Broker, clean_broker: str) -> Broker:
    """A virtual host with the users of the definitions, as RabbitMQ imports them, and nothing else."""
    text = json.dumps(rights.definitions(PASSWORDS, vhost=clean_broker.rpartition("/")[2]))
    encoded = base64.b64encode(text.encode()).decode()
    said = await shared_broker.ctl("eval", f'rabbit_definitions:import_raw(base64:decode(<<"{encoded}">>)).')
    assert said.strip() == "ok"
    return shared_broker


@pytest.fixture
async def system(broker: Broker, sqlite_database: str, tmp_path: Path) -> AsyncIterator[System]:
    """The processes as in production: none declares, each has a user of its own. None of them is started yet."""
    system = System(broker.url, sqlite_database, tmp_path, **PRODUCTION)
    await system.migrate()
    yield system
    await system.close()


async def topology_(broker: Broker, system: System, command: str) -> Answer:
    """Run `whatsapp-qr topology` as the user who may."""
    return await operate(system, "topology", command, AMQP_URL=url_of(broker, "whatsapp-qr-topology"))


async def start(broker: Broker, system: System) -> None:
    """Start every process, with its own user."""
    await asyncio.gather(
        *(
            system.start(role, AMQP_URL=url_of(broker, f"whatsapp-qr-{role}"), HTTP_HOST="127.0.0.1")
            for role in ("ingress", *CONSUMERS)
        ),
        system.start("simulator"),
        system.start("echo-bot", AMQP_URL=url_of(broker, "ai-worker")),
    )


async def test_a_whole_conversation(broker: Broker, system: System) -> None:
    """Paired, asked, answered, delivered; a dead letter is kept, and put back by the operator's user."""
    assert (await topology_(broker, system, "apply")).status == 0
    await start(broker, system)
    chatbot_id, session_id = await system.connect()
    await system.control(f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": "Hola"})
    [answer] = await eventually(lambda: system.sent(session_id))
    assert "Hola" in answer["message"]

    answer = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="own")
    assert answer.is_success, answer.text
    message_id = answer.json()["messageId"]
    await eventually(lambda: system.message(message_id), lambda message: message.get("deliveryStatus") == "READ")

    report = {"from": CUSTOMER, "message": "lost", "messageId": "WA1", "timestamp": 1_700_000_000}
    await system.post("/incoming", sessionId=f"session_{uuid4()}_1", **report)
    [dead] = await eventually(lambda: listed(system))
    operator = url_of(broker, "whatsapp-qr-operator")
    put_back = await operate(system, "dead-letters", "replay", dead["id"], AMQP_URL=operator)
    assert (put_back.status, put_back.error) == (0, "")
    await eventually(lambda: listed(system), lambda rows: [row["attempts"] for row in rows] == [2])  # it died again
    assert (await system.post("/disconnect", chatbotId=str(chatbot_id))).is_success
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")


async def test_processes_wait_for_the_topology(broker: Broker, system: System) -> None:
    """Without it nobody is ready, the log says what to run, nothing is declared; once it is there, all goes on."""
    roles = {role: system._process(role, AMQP_URL=url_of(broker, f"whatsapp-qr-{role}")) for role in CONSUMERS}
    ingress = system._process("ingress", AMQP_URL=url_of(broker, "whatsapp-qr-ingress"))
    system.processes += [*roles.values(), ingress]
    await asyncio.gather(*(process.start() for process in system.processes))
    for process in system.processes:
        await eventually(lambda process=process: said(process.log(), "whatsapp-qr topology apply"))
    for process in roles.values():
        answer = await system.http.get(f"{process.url}/readyz")
        assert (answer.status_code, answer.json()["checks"]["consuming"]) == (503, False)
        assert (await system.http.get(f"{process.url}/livez")).status_code == 200
    vhost = broker.url.rpartition("/")[2]
    assert json.loads(await broker.ctl("-q", "list_queues", "-p", vhost, "name", "--formatter=json")) == []

    assert (await topology_(broker, system, "apply")).status == 0
    for process in system.processes:
        await eventually(lambda process=process: process.ready(system.http))
    queues = json.loads(await broker.ctl("-q", "list_queues", "-p", vhost, "name", "--formatter=json"))
    await eventually(lambda: said(ingress.log(), "not_listening_yet"))
    assert {queue["name"] for queue in queues} >= {queue.name for queue in topology.queues(4)}


async def said(log: str, what: str) -> bool:
    return what in log


async def refused(connection: AbstractConnection, operate_: Any) -> bool:
    """Whether RabbitMQ refuses an operation; each has a channel of its own, which a refusal closes."""
    channel = await connection.channel(publisher_confirms=True, on_return_raises=False)
    try:
        await operate_(channel)
    except ChannelAccessRefused:
        return True
    except ChannelLockedResource:
        return False
    finally:
        if not channel.is_closed:
            await channel.close()
    return False


def configuring(name: str) -> Any:
    async def configure(channel: AbstractChannel) -> None:
        for exchange in topology.EXCHANGES:
            if exchange.name == name:
                await topology.declare_exchange(channel, exchange)
                return
        [queue] = [queue for queue in topology.queues(2) if queue.name == name]
        await topology.declare_queue(channel, queue)

    return configure


def writing(name: str) -> Any:
    async def write(channel: AbstractChannel) -> None:
        exchange = await channel.get_exchange(name, ensure=False)
        await exchange.publish(aio_pika.Message(b"{}"), "x", mandatory=False)

    return write


def reading(name: str) -> Any:
    async def read(channel: AbstractChannel) -> None:
        queue = await channel.get_queue(name, ensure=False)
        await queue.get(fail=False)

    return read


async def by_default(channel: AbstractChannel) -> None:
    await channel.default_exchange.publish(aio_pika.Message(b"{}"), "whatsapp-qr.sessions")


def deleting(name: str) -> Any:
    async def delete(channel: AbstractChannel) -> None:
        await channel.queue_delete(name)

    return delete


def purging(name: str) -> Any:
    async def purge(channel: AbstractChannel) -> None:
        await (await channel.get_queue(name, ensure=False)).purge()

    return purge


def listening(name: str, exchange: str) -> Any:
    async def listen(channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(name, exclusive=True, auto_delete=True)
        await queue.bind(exchange, "#")

    return listen


async def test_rabbitmq_allows_and_refuses_what_the_table_says(broker: Broker) -> None:
    """Every user on every exchange and queue of a real broker, in both directions."""
    await topology.declare(broker.url, 2)
    for user, (configured, written, read) in ALLOWED.items():
        async with await aio_pika.connect(url_of(broker, user)) as connection:
            may = {
                "declare": {name for name in EXCHANGES | QUEUES if not await refused(connection, configuring(name))},
                "publish": {name for name in EXCHANGES if not await refused(connection, writing(name))},
                "read": {name for name in QUEUES if not await refused(connection, reading(name))},
                "delete": {name for name in QUEUES - configured if not await refused(connection, deleting(name))},
                "purge": {name for name in QUEUES - read if not await refused(connection, purging(name))},
                "default": {name for name in ("",) if not await refused(connection, by_default)},
            }
            declared, published = (EXCHANGES | QUEUES) & configured, EXCHANGES & written
            allowed = {"declare": declared, "publish": published, "read": QUEUES & read}
            assert (user, may) == (user, allowed | {key: set() for key in ("delete", "purge", "default")})


@pytest.mark.parametrize(
    ("user", "queue"), [("whatsapp-qr-ingress", "whatsapp-qr.ingress.x"), ("event-subscriber", "event-subscriber.x")]
)
async def test_who_has_queues_of_its_own_hears_events_alone(broker: Broker, user: str, queue: str) -> None:
    """It may bind them to the events, and to no other exchange: jobs and reports are not for it."""
    await topology.declare(broker.url, 1)
    async with await aio_pika.connect(url_of(broker, user)) as connection:
        assert not await refused(connection, listening(f"{queue}.events", EVENTS))
        for exchange in (COMMANDS, GATEWAY, JOBS, DEAD_LETTERS):
            assert await refused(connection, listening(f"{queue}.{exchange}", exchange)), exchange
        assert await refused(connection, listening("somebody-else", EVENTS))


@pytest.mark.parametrize("exchange", ["amq.topic", EVENTS, ""])
async def test_what_may_not_be_put_back_stops_nothing_else(broker: Broker, exchange: str) -> None:
    """A dead letter of an exchange that is none of the operator's business fails alone, with the reason."""
    await topology.declare(broker.url, 1)
    async with Replayer(url_of(broker, "whatsapp-qr-operator"), 1) as replayer:
        with pytest.raises(Undeliverable, match="may not publish to") as caught:
            await replayer.put_back(Original(b"{}", exchange, "x", {}, {}))
        assert caught.value.code == "access_refused"
        await replayer.put_back(Original(b"{}", COMMANDS, "message.send", {"messageId": "m"}, {}))
    async with Amqp(broker.url) as amqp:
        await amqp.until_waiting("whatsapp-qr.conversations.entry", 1)


async def test_a_user_of_the_definitions_has_no_password_until_it_is_given_one(broker: Broker) -> None:
    """Imported as they are committed, nobody can log in, with an empty password neither."""
    text = json.dumps(rights.definitions({}, vhost=broker.url.rpartition("/")[2]))
    encoded = base64.b64encode(text.encode()).decode()
    await broker.ctl("eval", f'rabbit_definitions:import_raw(base64:decode(<<"{encoded}">>)).')
    for password in ("", "guest", PASSWORDS["whatsapp-qr-topology"]):
        url = broker.url.replace("guest:guest", f"whatsapp-qr-topology:{password}")
        with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(await aio_pika.connect(url))
