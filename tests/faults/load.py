"""The load of a run: customers write and chatbots answer; what else goes on is in `other_traffic`."""

import asyncio
import random
import time
from collections.abc import Sequence
from uuid import UUID, uuid5

from tests.faults.ledger import Given, Ledger, Link
from tests.faults.retried_calls import AmqpPort, until_accepted
from tests.system import System
from whatsapp_qr_contracts.commands import Command, SendMessage
from whatsapp_qr_contracts.message import COMMANDS
from whatsapp_qr_contracts.partitions import partition_of

PARTITIONS = 4
_SHORTEST_PAUSE = 0.02


class Load:
    """Gives the service its work and writes down what was accepted.

    Args:
        system: the service.
        amqp_url: the broker, past every proxy: other teams have networks of their own.
        ledger: what was accepted.
        dice: decides everything that is left to chance.
        messages: how many each chatbot sends, and how many each customer writes.
        seconds: how long that takes if all goes well.
    """

    def __init__(
        self, system: System, amqp_url: str, ledger: Ledger, dice: random.Random, messages: int, seconds: float
    ) -> None:
        self.system = system
        self.ledger = ledger
        self.port = AmqpPort(amqp_url)
        self.dice = dice
        self._messages = messages
        self.seconds = seconds
        self._pause = seconds / messages

    async def link(self, count: int) -> None:
        """Link so many chatbots, spread over the partitions."""
        while len(self.ledger.links) < count:
            chatbot_id = UUID(int=self.dice.getrandbits(128), version=4)
            if partition_of(str(chatbot_id), PARTITIONS) == len(self.ledger.links) % PARTITIONS:
                customer = f"54911{40_000_000 + len(self.ledger.links)}"
                _, session_id = await self.system.connect(chatbot_id)
                self.ledger.links.append(Link(chatbot_id, session_id, customer))

    async def run(self) -> None:
        """Give everything; returns when all of it was accepted."""
        flows = [flow(link) for link in self.ledger.links for flow in (self._chatbot_sends, self._customer_writes)]
        async with asyncio.TaskGroup() as tasks:
            for flow in flows:
                tasks.create_task(flow)

    async def close(self) -> None:
        """Close what connects."""
        await self.port.close()

    async def _breathe(self) -> None:
        await asyncio.sleep(max(_SHORTEST_PAUSE, self._pause * self.dice.uniform(0.5, 1.3)))

    # A chatbot

    async def _chatbot_sends(self, link: Link) -> None:
        for number in range(self._messages):
            text = f"out {self.ledger.links.index(link)} {number}"
            give = self.dice.choice((self._send_by_rest, self._send_by_amqp))
            link.outgoing.append(Given(await give(link, text), text))
            await self._breathe()

    async def _send_by_rest(self, link: Link, text: str) -> str:
        body = {"chatbotId": str(link.chatbot_id), "to": link.customer, "message": text}
        headers = {"Idempotency-Key": text}
        url = f"{self.system.api}/send"
        answer, repeats = await until_accepted(lambda: self.system.http.post(url, json=body, headers=headers), 202)
        if self.dice.random() < 0.05:  # an impatient client
            again, more = await until_accepted(lambda: self.system.http.post(url, json=body, headers=headers), 202)
            assert again.json()["messageId"] == answer.json()["messageId"]
            repeats += 1 + more
        self.ledger.repeats["send"] += repeats
        return str(answer.json()["messageId"])

    async def _send_by_amqp(self, link: Link, text: str) -> str:
        command = SendMessage(chatbot_id=link.chatbot_id, to=link.customer, message=text)
        for _ in range(1 + (self.dice.random() < 0.05)):
            await self.command(command, text)
        return str(uuid5(link.chatbot_id, text))

    async def command(self, command: Command, command_id: str, *, knows_partitions: bool = True) -> None:
        """Give a command until it is accepted; who does not know the partitions leaves its own out."""
        partition = f".{partition_of(str(command.chatbot_id), PARTITIONS)}" if knows_partitions else ""
        self.ledger.repeats[command.name] += await self.port.put(
            command.wire(),
            exchange=COMMANDS,
            routing_key=f"{command.name}{partition}",
            message_id=command_id,
            kind=command.name,
        )

    # A customer

    async def _customer_writes(self, link: Link) -> None:
        """Write: of every second chatbot the gateway reports it in its own time, of the others it is posted here."""
        index = self.ledger.links.index(link)
        for number in range(self._messages):
            given = Given(f"WA{index}X{number}X{self.dice.getrandbits(64):X}", f"in {index} {number}")
            if index % 2:
                await self._gateway_reports(link, given)
            else:
                await self._report(link, [given, *self._old(link)])
            link.incoming.append(given)
            await self._breathe()

    def _old(self, link: Link) -> Sequence[Given]:
        """Return what is reported once more: a repetition of the newest, or of any that came before."""
        return [self.dice.choice(link.incoming)] if link.incoming and self.dice.random() < 0.1 else []

    async def _gateway_reports(self, link: Link, given: Given) -> None:
        url = f"{self.system.controls}/sessions/{link.session_id}/customers"
        copies = 3 if self.dice.random() < 0.1 else 1
        body = {"from": link.customer, "message": given.text, "messageId": given.id, "repeat": copies}
        # A gateway that was killed before it answered may have taken it: then it is there twice, under one id.
        _, repeats = await until_accepted(lambda: self.system.http.post(url, json=body), 200)
        self.ledger.repeats["report"] += repeats + copies - 1

    async def _report(self, link: Link, reports: Sequence[Given]) -> None:
        for given in reports:
            body = {"sessionId": link.session_id, "from": link.customer, "messageId": given.id, "message": given.text}
            body |= {"timestamp": str(int(time.time()))}
            url = f"{self.system.api}/incoming"
            _, repeats = await until_accepted(lambda body=body, url=url: self.system.http.post(url, json=body), 200)
            self.ledger.repeats["report"] += repeats
        self.ledger.repeats["report"] += len(reports) - 1
