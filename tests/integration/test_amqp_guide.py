"""The programs on the page docs/amqp.md, as they stand there, with the whole service."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path
from uuid import UUID

from schemas import node
from tests.amqp import Amqp
from tests.servers import REPOSITORY
from tests.system import System, eventually, running

GUIDE = (REPOSITORY / "docs" / "amqp.md").read_text(encoding="utf-8")
EXAMPLE = REPOSITORY / "contracts" / "examples" / "node"
ORDER = "order-1234-shipped"


def program(name: str) -> str:
    """A program of the page, by the name that stands before it."""
    [found] = re.findall(rf"<!-- {re.escape(name)} -->\n\n```\w+\n(.*?)```\n", GUIDE, re.DOTALL)
    return str(found)


async def test_the_programs_do_what_the_page_says(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Sent while no phone is linked, taken back, tried again, and delivered once one is; each step is told."""
    shutil.copytree(EXAMPLE, tmp_path, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    await asyncio.to_thread(node.install, tmp_path)
    for name in ("orders.py", "follow.js"):
        (tmp_path / name).write_text(program(name), encoding="utf-8")
    environment = os.environ | {"AMQP_URL": clean_broker}
    async with running(clean_broker, sqlite_database, tmp_path) as system:
        chatbot, session_id = await system.connect()
        log = tmp_path / "follow.log"
        with log.open("wb") as output:
            following = await asyncio.create_subprocess_exec(
                node.node(), tmp_path / "follow.js", env=environment, stdout=output, stderr=output
            )
        try:
            await _orders(system, chatbot, session_id, tmp_path, log, environment)
        finally:
            following.kill()
            await following.wait()
    async with Amqp(clean_broker) as amqp:
        await amqp.until_waiting("shop.orders", 0)


async def _orders(
    system: System, chatbot: UUID, session_id: str, folder: Path, log: Path, environment: dict[str, str]
) -> None:
    async def told(line: str) -> None:
        await eventually(lambda: asyncio.to_thread(log.read_text), lambda text: line in text)

    async def ask(what: str) -> None:
        command = [sys.executable, folder / "orders.py", str(chatbot), what]
        assert await (await asyncio.create_subprocess_exec(*command, env=environment)).wait() == 0

    await told("following")
    await system.control(f"/sessions/{session_id}/unlink")
    await eventually(lambda: system.status(session_id), lambda status: status == "DISCONNECTED")
    for what in ("send", "send", "cancel"):
        await ask(what)
    await told(f"message.cancelled {ORDER}-cancel")
    await told(f"message.failed {ORDER} cancelled")
    await ask("retry")
    await told(f"message.queued {ORDER}-retry-1")
    await system.connect(chatbot)
    await told("message.read")
    assert [sent["message"] for sent in await system.sent(session_id)] == ["On its way."]
    await ask("cancel")
    await ask("send")
