"""DELETE /messages/{id} with a conversation consumer behind it that the test plays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import httpx
import pytest

from service.persistence.tables import SessionRow
from tests.component.ingress_app import Ingress, problem
from tests.component.rows import answered, claimed, enqueue, handle, reread
from whatsapp_qr_contracts.message import DeliveryStatus as D


@asynccontextmanager
async def consumed(ingress: Ingress) -> AsyncIterator[None]:
    """Handle what the ingress publishes, as the conversation consumer does."""

    async def consume() -> None:
        while True:
            while ingress.broker.published:
                command, envelope = ingress.broker.published.pop(0)
                assert envelope.keys() == {"message_id", "correlation_id", "seconds"}
                await handle(ingress.database, command, message_id=envelope["message_id"])
            await asyncio.sleep(0.01)

    task = asyncio.create_task(consume())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def delete(ingress: Ingress, message_id: UUID | str) -> httpx.Response:
    return await ingress.http.delete(f"/whatsapp-qr/messages/{message_id}")


async def test_a_message_that_waits_is_cancelled(ingress: Ingress, session: SessionRow) -> None:
    """200 with the message as GET shows it, also the second time."""
    message = await enqueue(ingress.database, session)
    async with consumed(ingress):
        for _ in range(2):
            answer = await delete(ingress, message.id)
            assert answer.status_code == 200, answer.text
            assert answer.json() == (await ingress.get(f"/messages/{message.id}")).json()
            data = answer.json()["data"]
            assert (data["deliveryStatus"], data["errorCode"]) == ("FAILED", "cancelled")


async def test_a_message_that_went_out_is_not(ingress: Ingress, session: SessionRow) -> None:
    """409 with the code of the command; the message stays as it is."""
    message = await enqueue(ingress.database, session)
    async with consumed(ingress):
        being_sent = await claimed(ingress.database, session)
        problem(await delete(ingress, message.id), 409, "being_sent")
        await answered(ingress.database, being_sent, being_sent.message.whatsapp_message_id)
        problem(await delete(ingress, message.id), 409, "not_pending")
    assert (await reread(ingress.database, message)).delivery_status is D.SENT


async def test_an_unknown_message_is_not_found(ingress: Ingress) -> None:
    """404 without any command; an id that is none is a bad request."""
    problem(await delete(ingress, uuid4()), 404, "no_message")
    problem(await delete(ingress, "1"), 400, "invalid_request")
    assert ingress.broker.published == []


async def test_what_takes_long_is_still_under_way(
    ingress: Ingress, session: SessionRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """202 with the message as it is while no consumer answers: the command waits in its queue."""
    monkeypatch.setattr("service.waiting._WAIT_SECONDS", 0.1)
    message = await enqueue(ingress.database, session)
    answer = await delete(ingress, message.id)
    assert (answer.status_code, answer.json()["data"]["deliveryStatus"]) == (202, "PENDING")
    assert [command.name for command, _ in ingress.broker.published] == ["message.cancel"]


async def test_nothing_is_promised_without_a_broker(ingress: Ingress, session: SessionRow) -> None:
    """503, and the message waits on."""
    message = await enqueue(ingress.database, session)
    ingress.broker.away = True
    problem(await delete(ingress, message.id), 503, "broker_unavailable")
