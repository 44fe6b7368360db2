"""The session, the message and the conversation of the documents' examples, made in a running service."""

import json
from uuid import uuid4

from tests.amqp import Amqp
from tests.published import Published
from tests.system import System, eventually
from whatsapp_qr_contracts.fields import A_SESSION

PUBLISHED = Published()


async def publish_example(system: System, name: str) -> None:
    """Publish the whole example of a command."""
    async with Amqp(system.amqp_url) as amqp:
        body = json.dumps(PUBLISHED.bodies[name]["examples"][0]).encode()
        await amqp.publish(body, name, message_id=str(uuid4()), type=name)


async def linked(system: System) -> None:
    """Link the chatbot of the examples, unless it is; its session's id follows from the example's own command."""
    if await system.status(A_SESSION) == "CONNECTED":
        return
    await publish_example(system, "session.initialize")
    await system.scan(A_SESSION)


async def sent(system: System) -> None:
    """Send the example's message; its id and its conversation's are those of the other examples."""
    await publish_example(system, "message.send")
    message = PUBLISHED.bodies["message.sent"]["examples"][0]
    seen = await eventually(lambda: system.message(message["messageId"]))
    assert seen["conversationId"] == message["conversationId"]
