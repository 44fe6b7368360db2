"""What neighbours do while somebody harms: customers write, chatbots send; each is a sample of how long that takes."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractExchange
from aio_pika.exceptions import AMQPError

from tests.neighbours.deployment import CUSTOMER, HARMED, Chatbot, Deployment
from tests.neighbours.judging import Place, Timed
from tests.neighbours.publishing import a_send
from tests.neighbours.receiving import Sent, until

_ACCEPTED = range(200, 300)
_BEFORE_ALL = 0.2


class Kind(StrEnum):
    """What a sample is: from where to where it is measured."""

    INCOMING = "customer's message, to event and job"
    RECEIVED = "customer's message, to event"
    SEND = "POST /send, to message.sent"
    KEYED = "message.send.N, to message.sent"
    BARE = "message.send, to message.sent"
    STORE = "POST /send, to conversation.started"
    RECEIPT = "receipt, to message.delivered"


_END = {
    Kind.INCOMING: "message.received",
    Kind.RECEIVED: "message.received",
    Kind.STORE: "conversation.started",
    Kind.RECEIPT: "message.delivered",
}


@dataclass
class Sample:
    """Something that a neighbour gave to the service."""

    kind: Kind
    chatbot: Chatbot
    key: str
    """By which its event is known."""
    began: float
    refused: bool = False
    """Whether it was not even accepted."""


Mix = Mapping[Kind, int]
"""How often each kind is given, among all."""


class Load:
    """Gives samples at an even rate, however long each takes.

    Args:
        deployment: where.
        mix: what.
        rate: how many a second.
        commands: the exchange of commands, on a channel that confirms.
        shared: kinds that wait where the harm does, whatever partition they are for.
    """

    def __init__(
        self, deployment: Deployment, mix: Mix, rate: float, commands: AbstractExchange, shared: Collection[Kind] = ()
    ) -> None:
        self.deployment = deployment
        self.mix = mix
        self._rate = rate
        self._dice = random.Random(rate)
        self._turns = dict.fromkeys(mix, 0)
        self._commands = commands
        self._shared = shared

    async def give(self, goes_on: Callable[[int, float], bool]) -> list[Sample]:
        """Give samples as long as it says, told how many there are and the seconds since the first; return them all."""
        samples: list[Sample] = []
        begin = time.perf_counter() + _BEFORE_ALL
        async with asyncio.TaskGroup() as tasks:
            while goes_on(len(samples), len(samples) / self._rate):
                await asyncio.sleep(begin + len(samples) / self._rate - time.perf_counter())
                sample, accept = self._next(self._choice())
                samples.append(sample)
                tasks.create_task(_accepted(sample, accept))
        return samples

    def _choice(self) -> Kind:
        (kind,) = self._dice.choices(list(self.mix), list(self.mix.values()))
        nothing_to_report = kind is Kind.RECEIPT and not any(self._unread().values())
        return next(iter(self.mix)) if nothing_to_report else kind

    def _next(self, kind: Kind) -> tuple[Sample, Callable[[], Awaitable[bool]]]:
        deployment, name = self.deployment, self.deployment.a_name()
        # Some publish without a partition, always: what is late on that way must not stand before others in its lane.
        chatbots = deployment.neighbours[1::2] if kind is Kind.BARE else deployment.neighbours[::2]
        chatbot = chatbots[self._turns[kind] % len(chatbots)]
        self._turns[kind] += 1
        match kind:
            case Kind.INCOMING | Kind.RECEIVED:
                return self._sample(kind, chatbot, name), lambda: self._incoming(chatbot, name)
            case Kind.SEND:
                sample = self._sample(kind, chatbot, chatbot.sent_as(name))
                return sample, lambda: self._send(chatbot, CUSTOMER, name)
            case Kind.KEYED | Kind.BARE:
                key = chatbot.routing_key if kind is Kind.KEYED else "message.send"
                sample = self._sample(kind, chatbot, chatbot.sent_as(name))
                return sample, lambda: self._command(chatbot, name, key)
            case Kind.STORE:
                customer = f"549{uuid4().int % 10**10:010}"
                return self._sample(kind, chatbot, customer), lambda: self._send(chatbot, customer, name)
            case Kind.RECEIPT:
                return self._receipt()

    @staticmethod
    def _sample(kind: Kind, chatbot: Chatbot, key: str) -> Sample:
        return Sample(kind, chatbot, key, time.perf_counter())

    async def _incoming(self, chatbot: Chatbot, name: str) -> bool:
        body = {"sessionId": chatbot.session_id, "from": CUSTOMER, "message": "Is it on its way?", "messageId": name}
        return await self.deployment.caller.post("/incoming", body | {"timestamp": int(time.time())}) in _ACCEPTED

    async def _send(self, chatbot: Chatbot, to: str, name: str) -> bool:
        body = {"chatbotId": str(chatbot.id), "to": to, "message": f"It is: {name}."}
        return await self.deployment.caller.post("/send", body, Idempotency_Key=name) in _ACCEPTED

    async def _command(self, chatbot: Chatbot, name: str, routing_key: str) -> bool:
        put = a_send(chatbot.id, CUSTOMER, name, routing_key)
        message = aio_pika.Message(put.body, message_id=name, type="message.send", delivery_mode=2)
        try:
            await self._commands.publish(message, routing_key)
        except AMQPError:
            return False
        return True

    def _unread(self) -> dict[Chatbot, deque[Sent]]:
        return {one: self.deployment.receiver.unread[str(one.id)] for one in self.deployment.neighbours}

    def _receipt(self) -> tuple[Sample, Callable[[], Awaitable[bool]]]:
        unread = self._unread()
        chatbot = max(unread, key=lambda one: len(unread[one]))
        sent = unread[chatbot].popleft()
        data = {"messageId": sent.whatsapp_id, "status": "delivered", "timestamp": int(time.time())}
        body = {"type": "receipt", "sessionId": chatbot.session_id, "data": data}

        async def report() -> bool:
            return await self.deployment.caller.post("/webhook", body) in _ACCEPTED

        return self._sample(Kind.RECEIPT, chatbot, sent.message_id), report

    # What became of them

    def arrived_at(self, sample: Sample) -> float:
        """Return when all that a sample waits for had come; never, where some of it has not."""
        receiver = self.deployment.receiver
        at = receiver.events[_END.get(sample.kind, "message.sent")].get(sample.key, math.inf)
        if sample.kind is Kind.INCOMING:
            at = max(at, receiver.handed_over.get(sample.key, math.inf))
        return at

    async def arrived(self, samples: Sequence[Sample], seconds: float) -> list[Sample]:
        """Wait until all have arrived, for at most so many seconds; return those that have not."""
        return await until(lambda: (one for one in samples if math.isinf(self.arrived_at(one))), seconds)

    def timed(self, samples: Sequence[Sample], *, partitions: bool) -> list[Timed]:
        """Return how long each took.

        Args:
            samples: those that were given.
            partitions: whether the harm is in a partition.
        """

        def place(sample: Sample) -> Place:
            if not partitions:
                return "all"
            return "same" if sample.chatbot.partition == HARMED or sample.kind in self._shared else "other"

        return [
            Timed(str(one.kind), place(one), math.inf if one.refused else self.arrived_at(one) - one.began)
            for one in samples
        ]


async def _accepted(sample: Sample, accept: Callable[[], Awaitable[bool]]) -> None:
    sample.began = time.perf_counter()
    sample.refused = not await accept()
