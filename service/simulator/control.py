"""Control endpoints under /simulator: people and tests control phones, customers and faults."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from service.simulator.chats import whatsapp_id
from service.simulator.contract import described
from service.simulator.faults import Faults
from service.simulator.simulator import Running
from whatsapp_qr_contracts.addresses import Address, normalize_address
from whatsapp_qr_contracts.gateway import GatewayMessage, UnixTime
from whatsapp_qr_contracts.message import Identifier, SessionStatus, Text, WireModel

routes = APIRouter(prefix="/simulator")

Patience = Annotated[float, Query(ge=0, le=30, description="Seconds to wait until the condition holds")]


_SCANNED_OR_SHOWN = {SessionStatus.QR_READY, SessionStatus.CONNECTED}


class _Body(WireModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt field would otherwise pass unnoticed


class Scan(_Body):
    """The phone that scans."""

    phone_number: Annotated[Address, StringConstraints(pattern="^[0-9]+$")]


class CustomerMessage(_Body):
    """A customer's message."""

    sender: Identifier = Field(alias="from")
    message: Text = ""
    push_name: Text | None = None
    message_id: Identifier | None = Field(default=None, description="WhatsApp's id; by default a new one")
    type: Text | None = None
    timestamp: UnixTime | None = Field(default=None, description="Unix time in seconds or milliseconds; default now")
    repeat: int = Field(default=1, ge=1, le=1000, description="How often the same callback is posted, at once")


class Forget(_Body):
    """The session to lose; all sessions if none is named."""

    session_id: Identifier | None = None


@routes.post("/sessions/{session_id}/scan")
async def scan(session_id: str, body: Scan, simulator: Running, wait: Patience = 0) -> dict[str, Any]:
    """Scan the session's QR code; 409 if it shows none within `wait`."""
    await _until(lambda: simulator.phones.get(session_id).status in _SCANNED_OR_SHOWN, wait)
    return {"success": True, "session": described(simulator.phones.scan(session_id, body.phone_number))}


@routes.post("/sessions/{session_id}/unlink")
async def unlink(session_id: str, simulator: Running) -> dict[str, Any]:
    """Remove the linked device on the phone; 409 if none is linked."""
    return {"success": True, "session": described(simulator.phones.unlink(session_id))}


@routes.post("/sessions/{session_id}/drop")
async def drop(session_id: str, simulator: Running) -> dict[str, Any]:
    """Lose the connection and keep the link; 409 if there is no connection."""
    return {"success": True, "session": described(simulator.phones.drop(session_id))}


@routes.post("/sessions/{session_id}/reconnect")
async def reconnect(session_id: str, simulator: Running) -> dict[str, Any]:
    """Restore a lost connection without a QR code; 409 if no phone is linked."""
    return {"success": True, "session": described(simulator.phones.reconnect(session_id))}


@routes.post("/sessions/{session_id}/customers")
async def customer_writes(
    session_id: str, body: CustomerMessage, simulator: Running, wait: Patience = 0
) -> dict[str, Any]:
    """Write as a customer to the linked account; 409 if it is not connected.

    The answer lists the messages that the customer was sent since then: the first ones within `wait`.
    """
    before = len(simulator.chats.sent(session_id, _recipient(body.sender)))
    message_id = body.message_id or whatsapp_id()
    fields = body.model_dump(by_alias=True, exclude={"repeat"}, exclude_none=True)
    try:
        message = GatewayMessage.model_validate(
            {"timestamp": int(time.time())} | fields | {"sessionId": session_id, "messageId": message_id}
        )
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    simulator.chats.receive(message, body.repeat)
    await _until(lambda: len(simulator.chats.sent(session_id, _recipient(body.sender))) > before, wait)
    answers = simulator.chats.sent(session_id, _recipient(body.sender))[before:]
    return {"success": True, "messageId": message_id, "answers": [answer.message for answer in answers]}


@routes.post("/forget")
async def forget(body: Forget, simulator: Running) -> dict[str, Any]:
    """Lose a session, or all, like a gateway whose disk was wiped; nothing is reported."""
    every = [session.session_id for session in simulator.phones.all()]
    for session_id in every if body.session_id is None else [body.session_id]:
        simulator.phones.forget(session_id)
    return {"success": True}


@routes.get("/faults")
async def faults(simulator: Running) -> Faults:
    """Return the active faults."""
    return simulator.faults


@routes.put("/faults")
async def set_faults(body: Faults, simulator: Running) -> Faults:
    """Replace all faults; a fault that is left out ends."""
    simulator.faults = body
    simulator.reports.lost = body.lose_callbacks
    return body


@routes.get("/sent")
async def sent(simulator: Running, sessionId: str | None = None, to: str | None = None) -> dict[str, Any]:  # noqa: N803
    """Return the sent messages, each once, in the order in which they were accepted."""
    messages = simulator.chats.sent(sessionId, _recipient(to))
    listed = [
        {
            "messageId": message.message_id,
            "sessionId": message.session_id,
            "to": message.recipient,
            "message": message.message,
            "sentAt": datetime.fromtimestamp(message.sent_at, UTC).isoformat(),
        }
        for message in messages
    ]
    return {"success": True, "sent": listed}


@routes.get("/callbacks")
async def callbacks(simulator: Running) -> dict[str, Any]:
    """Return how many callbacks wait to be accepted, for each session that has any."""
    return {"success": True, "waiting": simulator.chats.waiting_callbacks()}


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  # nothing signals it, and people are slow
        await asyncio.sleep(0.05)


def _recipient(text: str | None) -> str | None:
    try:
        return normalize_address(text) if text else None
    except ValueError:
        return text  # nothing was sent to it
