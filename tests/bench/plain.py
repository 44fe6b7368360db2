"""What the service is compared with: a handler that does all the work while its caller waits; no broker, no retry.

    python tests/bench/plain.py PORT DATABASE_URL GATEWAY_URL

A customer's message is one transaction. A send is a row, the call of the gateway, and a second transaction with its
result. Framework, server, driver, pool and durability are the service's own; nothing else that it does is done here.
"""

import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import Column, MetaData, String, Table, Text, Uuid, insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.persistence.database import Database

_MESSAGES = Table(
    "plain_messages",
    MetaData(),
    Column("id", Uuid, primary_key=True),
    Column("session_id", Text, index=True),
    Column("customer", String(255)),
    Column("content", Text),
    Column("status", String(16)),
    Column("whatsapp_id", String(255), index=True),
)


class Incoming(BaseModel):
    """A customer's message."""

    session_id: str = Field(alias="sessionId")
    sender: str = Field(alias="from")
    message: str
    message_id: str = Field(alias="messageId")


class Send(BaseModel):
    """A message to send."""

    session_id: str = Field(alias="sessionId")
    to: str
    message: str


def plain_app(database: Database, gateway: httpx.AsyncClient) -> FastAPI:
    """Return the handler."""

    async def make_table(tx: AsyncSession) -> None:
        await (await tx.connection()).run_sync(_MESSAGES.metadata.create_all)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await database.transact(make_table)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/incoming")
    async def incoming(body: Incoming) -> dict[str, bool]:
        row = {"session_id": body.session_id, "customer": body.sender, "content": body.message, "status": "DELIVERED"}
        statement = insert(_MESSAGES).values(id=uuid.uuid4(), whatsapp_id=body.message_id, **row)
        await database.transact(lambda tx: tx.execute(statement))
        return {"success": True}

    @app.post("/send", status_code=202)
    async def send(body: Send) -> dict[str, bool]:
        row = {"session_id": body.session_id, "customer": body.to, "content": body.message, "status": "PENDING"}
        message_id = uuid.uuid4()
        statement = insert(_MESSAGES).values(id=message_id, **row)
        await database.transact(lambda tx: tx.execute(statement))
        answer = await gateway.post("/send", json=body.model_dump(by_alias=True))
        sent = {"status": "SENT", "whatsapp_id": answer.raise_for_status().json()["messageId"]}
        result = update(_MESSAGES).where(_MESSAGES.c.id == message_id).values(**sent)
        await database.transact(lambda tx: tx.execute(result))
        return {"success": True}

    return app


if __name__ == "__main__":
    port, database_url, gateway_url = sys.argv[1:]
    client = httpx.AsyncClient(base_url=gateway_url, timeout=30)
    uvicorn.run(plain_app(Database(database_url), client), port=int(port), access_log=False, log_level="warning")
