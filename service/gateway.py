"""The HTTP client of the WhatsApp gateway. Its errors are translated here, once."""

import asyncio
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn
from urllib.parse import quote

import aiohttp
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from service import tracing
from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable
from service.metrics import GATEWAY_SECONDS
from whatsapp_qr_contracts.message import Identifier, SessionStatus, Text

MAX_CONNECTIONS = 256
_SUCCESS = range(200, 300)
_REDIRECTS = range(300, 400)
_NOT_FOUND = 404
_TOO_MANY = 429
_SERVER_ERROR = 500
# The gateway, or a proxy in front of it, reports that it did not accept the call.
_NOT_TAKEN = frozenset({_TOO_MANY, 502, 503, 504})
# No connection was made, or none was free. After any other error, the call may have reached the gateway.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# Shorter than the 5 s after which Node.js closes an idle connection: a call at that moment has an unknown outcome.
_KEEP_ALIVE_SECONDS = 4.0
_OUTCOMES: dict[type[GatewayError], str] = {
    GatewayUnreachable: "unreachable",
    GatewayOutcomeUnknown: "unknown",
    GatewayRefused: "refused",
}
# The gateway's texts are stored, so they are checked like all other incoming texts.
_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)


Call = Literal["init", "disconnect", "status", "sessions", "send"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a call may take."""

    send: float = 10.0
    init: float = 8.0
    other: float = 5.0


class Gateway:
    """Calls the gateway over pooled connections.

    Every method except `status` raises GatewayUnreachable if the call was not accepted, GatewayOutcomeUnknown if that
    is not known, and GatewayRefused if the gateway refused it.
    """

    def __init__(self, base_url: str, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        url = URL(base_url)
        self._server: dict[str, str | int] = {"server.address": url.host or ""}
        if url.explicit_port is not None:
            self._server["server.port"] = url.explicit_port
        self._base_url = str(url).rstrip("/")

    @cached_property
    def _http(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_SECONDS)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def initialize(self, session_id: str, chatbot_id: str) -> None:
        """Open a session; a running one stays unchanged."""
        body = {"sessionId": session_id, "chatbotId": chatbot_id}
        await self._call("init", "POST", "/init", body, seconds=self._timeouts.init)

    async def disconnect(self, session_id: str) -> None:
        """End a session; an unknown session counts as ended."""
        try:
            body = {"sessionId": session_id}
            await self._call("disconnect", "POST", "/disconnect", body, seconds=self._timeouts.other)
        except GatewayRefused as error:
            if error.code != "unknown_session":
                raise

    async def status(self, session_id: str) -> Reported:
        """Return the gateway's answer about a session; a missing answer is a value too."""
        try:
            answer = await self._call("status", "GET", f"/status/{_quoted(session_id)}", seconds=self._timeouts.other)
        except GatewayError as error:
            return UnknownSession() if error.code == "unknown_session" else NoAnswer(error)
        session = answer.get("session")
        return _reported(session if isinstance(session, dict) else {})

    async def sessions(self) -> dict[str, Reported] | None:
        """Return the gateway's answers about all its sessions, by their ids, or None if it has no such list."""
        try:
            answer = await self._call("sessions", "GET", "/sessions", seconds=self._timeouts.other)
        except GatewayRefused:
            return None
        listed = answer.get("sessions")
        if not isinstance(listed, list):
            return None
        found = [(_valid(_IDENTIFIER, entry.get("sessionId")), entry) for entry in listed if isinstance(entry, dict)]
        return {session_id: _reported(entry) for session_id, entry in found if session_id}

    async def qr_code(self, session_id: str) -> str | None:
        """Return the QR code that waits to be scanned, if there is one."""
        try:
            answer = await self._call("status", "GET", f"/qr-code/{_quoted(session_id)}", seconds=self._timeouts.other)
        except GatewayRefused:
            return None
        return _valid(_TEXT, answer.get("qrCode"))

    async def send(self, session_id: str, to: str, message: str, message_id: str) -> str:
        """Send a text under a WhatsApp id; return the id under which it was sent: the same, or one of the gateway's."""
        body = {"sessionId": session_id, "to": to, "message": message, "messageId": message_id}
        answer = await self._call("send", "POST", "/send", body, seconds=self._timeouts.send)
        return _valid(_IDENTIFIER, answer.get("messageId")) or message_id

    async def _call(
        self, call: Call, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float
    ) -> dict[str, Any]:
        began, outcome = time.perf_counter(), "ok"

        def describe() -> tracing.Attributes:
            # The path may contain a session id made by others, for example from a number: the call's name replaces it.
            return {**self._server, "http.request.method": method, "whatsapp_qr.gateway.call": call}

        try:
            with tracing.part(f"{method} {call}", SpanKind.CLIENT, describe):
                return await self._answer(method, path, body, seconds)
        except GatewayError as error:
            outcome = _OUTCOMES[type(error)]
            raise
        except BaseException:
            outcome = "unknown"  # it was interrupted
            raise
        finally:
            GATEWAY_SECONDS.labels(call, outcome).observe(time.perf_counter() - began)

    async def _answer(self, method: str, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        headers: dict[str, str] = {}
        tracing.inject(headers)
        # The client limits only the time to connect; but a claim must outlive the whole call.
        connecting = aiohttp.ClientTimeout(total=None, connect=seconds / 2)
        url = URL(f"{self._base_url}{path}", encoded=True)
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.request(
                    method, url, json=body, headers=headers, timeout=connecting, allow_redirects=False
                ) as response,
            ):
                answer = _json(await response.read())
        except _NOT_SENT as error:
            detail = f"the gateway did not accept the call: {type(error).__name__}"
            raise GatewayUnreachable(detail) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = f"the gateway did not answer the call: {type(error).__name__}"
            raise GatewayOutcomeUnknown(detail) from error
        if response.status not in _SUCCESS or (answer is not None and answer.get("success") is False):
            _refuse(response.status, answer or {})
        if answer is None:
            detail = "the gateway's answer is not a JSON object: does the URL lead to a gateway?"
            raise GatewayOutcomeUnknown(detail)
        return answer


def _quoted(session_id: str) -> str:
    return quote(session_id, safe="")


def _refuse(status: int, answer: dict[str, Any]) -> NoReturn:
    detail = _valid(_TEXT, answer.get("error")) or f"the gateway answered {status}"
    if status in _NOT_TAKEN or status in _REDIRECTS:
        raise GatewayUnreachable(detail)
    if status >= _SERVER_ERROR:
        raise GatewayOutcomeUnknown(detail)
    code = _valid(_IDENTIFIER, answer.get("code"))
    if status == _NOT_FOUND and not code:
        code = "unknown_session"
    raise GatewayRefused(detail, code=code)


def _json(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _valid(kind: TypeAdapter[str], value: Any) -> str | None:
    try:
        return kind.validate_python(value) or None
    except ValidationError:
        return None


def _reported(session: dict[str, Any]) -> Reported:
    try:
        status = SessionStatus(str(session.get("status", "")).upper())
    except ValueError:
        return UnknownWord()
    if status is SessionStatus.CONNECTED:
        return Connected(_valid(_TEXT, session.get("phoneNumber")))
    return OtherState(status, _valid(_TEXT, session.get("qrCode")))
