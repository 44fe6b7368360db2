"""What goes on beside the messages: old reports, links made and ended, small commands, nonsense."""

import asyncio
import json
import time
from typing import Any
from uuid import UUID, uuid4

import httpx

from tests.faults.ledger import Link
from tests.faults.load import PARTITIONS, Load
from tests.faults.retried_calls import until_accepted
from tests.system import eventually
from whatsapp_qr_contracts.commands import Command, DisconnectSession, InitializeSession, RegisterChatbot
from whatsapp_qr_contracts.message import COMMANDS


class OtherTraffic:
    """Everything that a service meets beside its work."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.system = load.system
        self.ledger = load.ledger
        self._dice = load.dice
        self._seconds = load.seconds

    async def run(self) -> None:
        """Do it all; returns when it was accepted."""
        await asyncio.gather(
            self._gossip(), self._pair_and_part(0), self._pair_and_part(1), self._commands(), self._poison()
        )

    # A gateway that repeats itself

    async def _gossip(self) -> None:
        """Report what is long past, or out of order: on each session, and on messages that the gateway has taken."""
        for _ in range(15):
            link = self._dice.choice(self.ledger.links)
            old = self._dice.choice(
                ({"type": "disconnected"}, {"type": "connected"}, {"type": "qr", "data": {"qrCode": "old"}})
            )
            sent, _ = await until_accepted(lambda link=link: self._sent(link), 200)
            ids = [one["messageId"] for one in sent.json()["sent"]]
            receipts = [self._receipt(self._dice.choice(ids), status) for status in ("read", "delivered") if ids]
            await asyncio.gather(*(self._webhook(link, report) for report in (old, *receipts)))
            await asyncio.sleep(self._seconds / 17)

    async def _sent(self, link: Link) -> httpx.Response:
        return await self.system.http.get(f"{self.system.controls}/sent", params={"sessionId": link.session_id})

    @staticmethod
    def _receipt(whatsapp_id: str, status: str) -> dict[str, Any]:
        return {"type": "receipt", "data": {"messageId": whatsapp_id, "status": status, "timestamp": int(time.time())}}

    async def _webhook(self, link: Link, report: dict[str, Any]) -> None:
        body = {"sessionId": link.session_id, "data": {}} | report
        url = f"{self.system.api}/webhook"
        await until_accepted(lambda: self.system.http.post(url, json=body), 200)
        self.ledger.repeats["gossip"] += 1

    # Pairing

    async def _pair_and_part(self, number: int) -> None:
        """Link another chatbot and unlink it, in turn."""
        chatbot_id = UUID(int=self._dice.getrandbits(128), version=4)
        for turn in range(2):
            session_id = await self._pair(chatbot_id, f"pair-{number}-{turn}")
            self.ledger.pairings[session_id] = "CONNECTED"
            if turn or number:  # the first one stays linked for good, the second is left unlinked
                await self._part(chatbot_id, session_id, f"part-{number}-{turn}")
                self.ledger.pairings[session_id] = "DISCONNECTED"
            if not number:
                return

    async def _pair(self, chatbot_id: UUID, name: str) -> str:
        tries = 0
        await self._session_command(InitializeSession(chatbot_id=chatbot_id), f"{name}-{tries}")

        async def session() -> dict[str, str]:
            try:
                answer = await self.system.get(f"/session/{chatbot_id}")
            except httpx.TransportError:
                return {}
            return answer.json()["data"] if answer.status_code == 200 else {}

        while (found := await session()).get("status") != "CONNECTED":
            if found.get("status") == "QR_READY":
                await self._scan(found["sessionId"])
            elif found.get("status") == "DISCONNECTED" and found.get("statusReason") == "gateway_unreachable":
                tries += 1
                await self._session_command(InitializeSession(chatbot_id=chatbot_id), f"{name}-{tries}")
            await asyncio.sleep(0.3)
        return found["sessionId"]

    async def _scan(self, session_id: str) -> None:
        try:
            await self.system.http.post(
                f"{self.system.controls}/sessions/{session_id}/scan", json={"phoneNumber": "5491155550000"}
            )
        except httpx.TransportError:
            return  # the gateway is away: the loop comes back

    async def _part(self, chatbot_id: UUID, session_id: str, name: str) -> None:
        await self._session_command(DisconnectSession(chatbot_id=chatbot_id), name)

        async def status() -> str | None:
            try:
                return await self.system.status(session_id)
            except httpx.TransportError:
                return None

        await eventually(status, lambda found: found == "DISCONNECTED", seconds=300)

    async def _session_command(self, command: Command, command_id: str) -> None:
        await self._load.command(command, command_id)
        self.ledger.commands[command_id] = True

    async def _commands(self) -> None:
        """Give commands whose answer is all that is expected of them."""
        for number in range(10):
            command_id = f"register-{number}"
            command = RegisterChatbot(chatbot_id=UUID(int=self._dice.getrandbits(128), version=4))
            for _ in range(1 + (number % 3 == 0)):
                await self._load.command(command, command_id, knows_partitions=bool(number % 2))
            self.ledger.commands[command_id] = False
            await asyncio.sleep(self._seconds / 12)

    # Nonsense

    async def _poison(self) -> None:
        for number, give in enumerate((self._bad_command, self._bad_report, self._stray) * 3):
            mark = f"poison-{self._dice.getrandbits(40)}"
            repeats = await give(mark, number // 3)
            self.ledger.poison.append(mark)
            self.ledger.repeats[mark] += repeats
            await asyncio.sleep(self._seconds / 10)

    async def _bad_command(self, mark: str, number: int) -> int:
        bodies = (f'{{"{mark}"', json.dumps({"chatbotId": mark}), json.dumps({"chatbotId": str(uuid4()), "to": mark}))
        return await self._load.port.put(
            bodies[number % 3].encode(),
            exchange=COMMANDS,
            routing_key=f"message.send.{number % PARTITIONS}",
            message_id=mark,
            kind="message.send",
        )

    async def _bad_report(self, mark: str, _number: int) -> int:
        url = f"{self.system.api}/incoming"
        body = {"sessionId": mark, "from": "5491140000000", "messageId": mark, "message": mark, "timestamp": 1}
        _, repeats = await until_accepted(lambda: self.system.http.post(url, json=body), 200)
        return repeats

    async def _stray(self, mark: str, _number: int) -> int:
        return await self._load.port.put(
            mark.encode(), exchange=COMMANDS, routing_key="nobody.reads.this", message_id=mark, kind="nobody.reads"
        )
