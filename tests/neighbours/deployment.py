"""Where harm is done: the whole running service, its neighbours, and what its broker and its processes show."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import DeliveryError

from tests.amqp import a_chatbot
from tests.bench.measuring import pid_of
from tests.neighbours.calling import Caller
from tests.neighbours.publishing import Put, a_send, held_back
from tests.neighbours.receiving import Receiver
from tests.servers import Broker, Postgres
from tests.system import SECONDS, System, eventually

PARTITIONS = 4
HARMED = 0
"""The partition of what harms; what does not know the partitions publishes to it too."""
CUSTOMER = "5491112345678"
# What takes minutes in production takes seconds here. Pacing limits no neighbour, and a burst is still paced.
SETTINGS = {"SEND_RATE": "10", "SEND_BURST": "50", "SWEEP_PERIOD": "5", "SWEEP_AGE": "15"}
_OK = 200
_LINKS_AT_ONCE = 6
_SETTLED = 120.0
_MOST_TO_FILL = 1000


@dataclass(frozen=True)
class Chatbot:
    """A linked chatbot."""

    id: UUID
    session_id: str
    partition: int

    @property
    def routing_key(self) -> str:
        """The key of its `message.send` for who knows the partitions."""
        return f"message.send.{self.partition}"

    def sent_as(self, message_id: str) -> str:
        """Return the service's id of a message that was sent under this one."""
        return str(uuid5(self.id, message_id))


class Deployment:
    """A running service that is harmed.

    Args:
        database: the kind of its database.
        system: the service; `amqp_url` is an empty virtual host of the broker.
        broker: the broker.
    """

    def __init__(self, database: str, system: System, broker: Broker) -> None:
        self.database = database
        self.system = system
        self.clean = True
        """Whether nothing of a harm is left; where it is not, the next test gets another deployment."""
        self.neighbours: list[Chatbot] = []
        self.receiver: Receiver
        self._broker = broker
        self._vhost = system.amqp_url.rpartition("/")[2]
        self._bulk: list[Chatbot] = []
        self._rate = 0.0
        self._numbers = count()
        self.caller = Caller(system.api)

    async def start(self, neighbours: Sequence[int]) -> None:
        """Start everything, with so many neighbours in each partition."""
        await self.system.migrate()
        await self.system.start()
        await self.system.faults(receipts=False)  # those that are measured are given here
        self.receiver = await Receiver.open(self.system.amqp_url)
        self.neighbours = await self.link([number for number in range(PARTITIONS) for _ in range(neighbours[number])])

    async def link(self, partitions: Iterable[int]) -> list[Chatbot]:
        """Link a chatbot in each of these partitions."""
        places = asyncio.Semaphore(_LINKS_AT_ONCE)

        async def one(partition: int) -> Chatbot:
            async with places:
                return Chatbot(*await self.system.connect(a_chatbot(partition, PARTITIONS)), partition)

        return await asyncio.gather(*map(one, partitions))

    async def bulk(self) -> list[Chatbot]:
        """Return two chatbots of each partition that harm: always the same ones."""
        if not self._bulk:
            self._bulk = await self.link([number for number in range(PARTITIONS) for _ in range(2)])
        return self._bulk

    def a_name(self) -> str:
        """Return an id that nothing else has."""
        return f"N{next(self._numbers)}"

    # Bursts

    def puts(self, chatbot: Chatbot, messages: int, routing_key: str) -> list[Put]:
        """Make up messages of a chatbot."""
        return [a_send(chatbot.id, CUSTOMER, self.a_name(), routing_key) for _ in range(messages)]

    @asynccontextmanager
    async def burst(
        self, chatbot: Chatbot, messages: int, routing_key: str, *, seconds: float = SECONDS
    ) -> AsyncIterator[Callable[[], Awaitable[float]]]:
        """Make messages of a chatbot ready; give what puts them in at once, and says how many were taken a second.

        What the service has not stored in time counts as if it were stored then.
        """
        puts = self.puts(chatbot, messages, routing_key)

        async def taken(release: Callable[[], Awaitable[None]]) -> float:
            began = time.perf_counter()
            await release()
            await self.stored([chatbot.sent_as(puts[-1].message_id)], seconds=seconds)
            return messages / (time.perf_counter() - began)

        async with held_back(self.system.amqp_url, puts) as release:
            yield partial(taken, release)

    async def stored(self, message_ids: Iterable[str], *, seconds: float = SECONDS) -> bool:
        """Wait until the service knows these messages; say whether it does."""
        deadline = time.monotonic() + seconds
        for message_id in message_ids:
            while (await self.caller.get(f"/messages/{message_id}"))[0] != _OK:
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.1)
        return True

    async def rate(self) -> float:
        """Return how many messages a second the service takes in when it has nothing else to do; measured once."""
        if not self._rate:
            (chatbot,) = await self.link([PARTITIONS - 1])
            async with self.burst(chatbot, 400, chatbot.routing_key) as taken:
                self._rate = await taken()
            await self.silence(chatbot)
        return self._rate

    async def silence(self, chatbot: Chatbot) -> None:
        """End a chatbot's link: what it has to send waits, and disturbs nobody."""
        answer = await self.system.post("/disconnect", chatbotId=str(chatbot.id))
        assert answer.is_success, answer.text

    # The broker

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Give a channel of a connection of its own."""
        async with await aio_pika.connect(self.system.amqp_url) as connection:
            yield await connection.channel()

    async def queues(self) -> dict[str, int]:
        """Return how many messages each durable queue holds, those included that a consumer has."""
        output = await self._broker.ctl(
            *("list_queues", "--quiet", "--no-table-headers", "-p", self._vhost, "name", "messages", "durable")
        )
        rows = [line.split("\t") for line in output.splitlines()]
        return {row[0]: int(row[1]) for row in rows if row[2:] == ["true"]}

    async def limit_queues(self, pattern: str, most: int) -> None:
        """Let queues hold at most so many messages."""
        rule = json.dumps({"max-length": most})
        await self._broker.ctl("set_policy", "-p", self._vhost, "full", pattern, rule, "--apply-to", "queues")

    async def lift_limits(self) -> None:
        """Let them hold what they could hold before."""
        await self._broker.ctl("clear_policy", "-p", self._vhost, "full")

    async def waiting(self, channel: AbstractChannel, names: Iterable[str]) -> int:
        """Count what nobody has taken yet from these queues."""
        found = [await channel.declare_queue(name, passive=True) for name in names]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    # The end

    def pids(self) -> dict[str, int | None]:
        """Return the process of each part of the service; None where it has ended."""
        return {process.name: pid_of(process) for process in self.system.processes if process.name != "migrate"}

    async def settled(self) -> None:
        """Wait until every queue is empty: nothing of the harm is left."""
        await eventually(self.queues, lambda found: not any(found.values()), seconds=_SETTLED)
        self.clean = True

    async def close(self) -> None:
        """End everything at once: what a harm has left may be more than a clean end has time for."""
        await self.caller.close()
        if hasattr(self, "receiver"):
            await self.receiver.close()
        for process in self.system.processes:
            if process.alive:
                await process.kill()
        await self.system.close()
        await self._broker.ctl("delete_vhost", self._vhost)


async def filled(channel: AbstractChannel, queue: str, message: aio_pika.Message) -> None:
    """Put copies of a message into a queue until it refuses one."""
    for _ in range(_MOST_TO_FILL):
        try:
            await channel.default_exchange.publish(message, queue)
        except DeliveryError:
            return
    raise AssertionError(f"{queue} refuses nothing after {_MOST_TO_FILL} messages")


class Deployments:
    """Gives deployments, one at a time: a test goes on in that of the one before where that is clean and fits.

    Args:
        broker: the broker of all.
        postgres: the PostgreSQL of all.
        folder: makes a new folder, told what for.
    """

    def __init__(self, broker: Broker, postgres: Postgres, folder: Callable[[str], Path]) -> None:
        self._broker = broker
        self._postgres = postgres
        self._folder = folder
        self._arena: Deployment | None = None
        self._made_for: tuple[Any, ...] = ()

    async def get(self, database: str, neighbours: Sequence[int] = (4, 2, 2, 2), **settings: str) -> Deployment:
        """Return a deployment with that kind of database."""
        wanted = (database, tuple(neighbours), settings)
        if self._arena is None or not self._arena.clean or self._made_for != wanted:
            await self.close()
            folder = self._folder("deployment")
            url = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
            if database == "postgres":
                url = await self._postgres.create_database()
            given: dict[str, Any] = SETTINGS | settings
            system = System(await self._broker.renew(), url, folder, **given)
            self._arena, self._made_for = Deployment(database, system, self._broker), wanted
            await self._arena.start(neighbours)
        self._arena.clean = False
        return self._arena

    async def close(self) -> None:
        """End the deployment that there is."""
        deployment, self._arena = self._arena, None
        if deployment is not None:
            await deployment.close()
            if deployment.database == "postgres":
                await self._postgres.drop_database(deployment.system.database_url)
