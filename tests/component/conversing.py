"""What tests of the conversation consumer share: a process that has one, receipts, what is told and confirmed."""

from collections.abc import Sequence
from typing import Any

from service.consumers.row_outputs import Output
from service.persistence.confirmations import Confirmations
from service.persistence.database import Database
from service.persistence.tables import SessionRow
from tests.component.rows import Outputs, handle
from whatsapp_qr_contracts.gateway import GatewayReceipt
from whatsapp_qr_contracts.message import Message


class World:
    """One process with a conversation consumer, and an announcer that only keeps what it is given."""

    def __init__(self, database: Database) -> None:
        self.database, self.outputs = database, Outputs()

    async def handle(self, *messages: Message, message_id: str = "c") -> list[Output]:
        """Handle messages in one batch; return what is told of them."""
        assert await handle(self.database, *messages, message_id=message_id, announcer=self.outputs) == []
        return self.outputs.take()

    async def refuses(self, message: Message, message_id: str = "c") -> str:
        """Handle a message that can never be processed; return why."""
        [(_, error)] = await handle(self.database, message, message_id=message_id, announcer=self.outputs)
        assert self.outputs.outputs == []
        return error.code

    async def confirm(self, outputs: Sequence[Output]) -> None:
        """Write down that the broker has confirmed what was told."""
        await confirm(self.database, *outputs)


async def confirm(database: Database, *outputs: Output) -> None:
    """Write down that the broker has confirmed outputs."""
    marks = Confirmations(database)
    for output in outputs:
        marks.note(output.confirmation)
    await marks.flush()


def ids(outputs: Sequence[Output]) -> dict[str, str]:
    """Return the AMQP id of each output by its name."""
    return {output.message.name: output.message_id for output in outputs}


def a_receipt(session: SessionRow, whatsapp_id: str, status: str = "delivered", **data: Any) -> GatewayReceipt:
    """Build what the gateway reports of a message that was sent."""
    data = {"messageId": whatsapp_id, "status": status, **data}
    return GatewayReceipt.model_validate({"type": "receipt", "sessionId": session.session_id, "data": data})
