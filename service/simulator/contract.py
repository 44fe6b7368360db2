"""The gateway's HTTP contract: the endpoints that the service calls."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from service.simulator.answers import LateAnswer, NoAnswer, failure
from service.simulator.chats import whatsapp_id
from service.simulator.faults import FailureKind
from service.simulator.phones import unknown_session
from service.simulator.simulator import Running
from service.simulator.store import SentMessage, Session
from whatsapp_qr_contracts.addresses import Address
from whatsapp_qr_contracts.message import Identifier, Text, WireModel

routes = APIRouter()


class Init(WireModel):
    """Start a session."""

    session_id: Identifier
    chatbot_id: UUID


class Send(WireModel):
    """Send a text to a customer."""

    session_id: Identifier
    to: Address
    message: Text = Field(min_length=1, max_length=65_536)
    message_id: Identifier | None = None


class Disconnect(WireModel):
    """End a session."""

    session_id: Identifier


@routes.post("/init")
async def init(body: Init, simulator: Running) -> dict[str, Any]:
    """Start a session; a running one stays unchanged."""
    if body.session_id in simulator.faults.loading:
        simulator.phones.replace(body.session_id)
    started = simulator.phones.start(body.session_id, str(body.chatbot_id), hangs=simulator.faults.no_qr_code)
    await asyncio.sleep(simulator.faults.init_latency)
    message = "Session is starting" if started else "Session is running already"
    return {"success": True, "message": message, "sessionId": body.session_id}


@routes.get("/qr-code/{session_id}", response_model=None)
async def qr_code(session_id: str, simulator: Running) -> dict[str, Any] | JSONResponse:
    """Return the QR code that waits to be scanned; 404 if there is none."""
    session = simulator.phones.get(session_id)
    if session.qr_code is None:
        return failure(404, f"There is no QR code: the session is {session.status}.")
    return {"success": True, "sessionId": session_id, "qrCode": session.qr_code}


@routes.get("/status/{session_id}")
async def status(session_id: str, simulator: Running) -> dict[str, Any]:
    """Return a session's status; 404 if it is unknown."""
    if session_id in simulator.faults.loading:
        raise unknown_session(session_id)
    session = simulator.phones.get(session_id)
    return {"success": True, "session": described(session) | _where_known(qrCode=session.qr_code)}


@routes.get("/sessions")
async def sessions(simulator: Running) -> dict[str, Any]:
    """Return all sessions, oldest first, without their QR codes."""
    loaded = [one for one in simulator.phones.all() if one.session_id not in simulator.faults.loading]
    return {"success": True, "sessions": [described(session) for session in loaded]}


@routes.post("/send")
async def send(body: Send, simulator: Running) -> Response:
    """Deliver a message, once for each `messageId`; with the requested faults."""
    faults = simulator.faults
    await asyncio.sleep(faults.latency)
    fault = faults.strike()
    message = SentMessage(
        session_id=body.session_id,
        message_id=(not faults.own_ids and body.message_id) or whatsapp_id(),
        recipient=body.to,
        message=body.message,
        sent_at=time.time(),
    )
    simulator.chats.send(message, faults, fault)
    await asyncio.sleep(faults.answer_latency)
    answer = {"success": True, "messageId": message.message_id}
    match fault:
        case FailureKind.TIMEOUT_AFTER_ACCEPT:
            return LateAnswer(answer, seconds=simulator.hold_seconds)
        case FailureKind.DROP_AFTER_ACCEPT:
            return NoAnswer()
        case _:
            return JSONResponse(answer)


@routes.post("/disconnect")
async def disconnect(body: Disconnect, simulator: Running) -> dict[str, Any]:
    """End a session and log its phone out; 200 even if that has happened already."""
    simulator.phones.disconnect(body.session_id)
    return {"success": True, "message": "Session is disconnected", "sessionId": body.session_id}


@routes.get("/health")
async def health() -> dict[str, str]:
    """Report that the gateway runs."""
    return {"status": "ok", "timestamp": datetime.now(UTC).isoformat()}


def described(session: Session) -> dict[str, Any]:
    """Return a session in the contract's form, without its QR code."""
    identity = {"sessionId": session.session_id, "status": session.status.value}
    return identity | _where_known(phoneNumber=session.phone_number)


def _where_known(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}
