"""A service from before 0.1.0 is brought over by one full stop, as docs/operations.md describes it."""

import json
from pathlib import Path
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service.domain.identities import output_id
from service.messaging.topology import CONVERSATIONS
from tests.amqp import Amqp
from tests.integration.singletons import rows_by_hand
from tests.integration.test_restored_database import CUSTOMER, SETTINGS, sends, stop, writes
from tests.schema_before import bring_back
from tests.system import CONSUMERS, System, eventually, running
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.message import COMMANDS


async def as_before(system: System) -> None:
    """Make of the stopped service one of before: its schema, its bindings; no job or event is known to be told."""
    await bring_back(system.database_url)
    async with rows_by_hand(system) as database:

        async def forget(tx: AsyncSession) -> None:
            for table in ("messages", "conversations"):
                await tx.execute(text(f"UPDATE {table} SET announced = :no"), {"no": False})  # noqa: S608

        await database.transact(forget)
    async with Amqp(system.amqp_url) as amqp:
        await amqp.channel.queue_delete(str(CONVERSATIONS.entry))
        first = await amqp.channel.get_queue(CONVERSATIONS.name)
        await first.bind(COMMANDS, SendMessage.name)


async def test_what_was_left_unfinished_is_brought_over(clean_broker: str, database_url: str, tmp_path: Path) -> None:
    """What waits in rows and queues is done, once; what was not known to be told is told, under the ids it had."""
    async with running(clean_broker, database_url, tmp_path, **SETTINGS) as system:
        chatbot_id, session_id = await system.connect()
        jobs = await system.jobs()
        await writes(system, session_id, "received before")
        (told,) = await jobs.arrived()
        await stop(system, "outbound-consumer")
        message_id = await sends(system, chatbot_id, "its job waits")
        await eventually(lambda: system.message(message_id))
        await stop(system, *CONSUMERS)
        await as_before(system)
        waits = SendMessage(chatbot_id=chatbot_id, to=CUSTOMER, message="its command waits")
        async with Amqp(clean_broker) as amqp:
            await amqp.publish(waits.wire(), waits.name, message_id="waits", type=waits.name, delivery_mode=2)
        await system.migrate()
        await system.start(*CONSUMERS)
        again = (await jobs.arrived(2))[1]
        assert (again.message_id, again.body) == (told.message_id, told.body)
        assert again.message_id == output_id(UUID(json.loads(again.body)["messageId"]), "job")

        async def sent() -> list[str]:
            return [one["message"] for one in await system.sent(session_id)]

        await eventually(sent, lambda seen: sorted(seen) == ["its command waits", "its job waits"])
