"""A gateway under test, over real HTTP, and an ingress that takes its callbacks."""

import base64
import io
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import uvicorn
import zxingcpp
from fastapi import FastAPI
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from service.simulator.app import simulator_app
from whatsapp_qr_contracts.gateway import GatewayMessage, GatewayReport, Webhook

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for a signal."""
CHATBOT = "11111111-1111-4111-8111-111111111111"
SESSION = f"session_{CHATBOT}_1700000000000"
OTHER_SESSION = "session_22222222-2222-4222-8222-222222222222_1700000000000"
PHONE = "5491100000000"
CUSTOMER = "5491112345678"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading the certificate authorities takes 0.1 s for each client, and nothing here is encrypted."""
BREAK_OFF = 0
"""In place of a status: close the connection without an answer."""

_reports: dict[str, TypeAdapter[Any]] = {
    "/whatsapp-qr/webhook": TypeAdapter(Webhook),
    "/whatsapp-qr/incoming": TypeAdapter(GatewayMessage),
}


@dataclass
class Receiver:
    """Stands for the ingress: checks every callback against the contract and keeps the accepted ones in order."""

    answer: Callable[[GatewayReport], int] = lambda _: 200
    """The status for a report; set it to refuse."""
    posts: list[tuple[GatewayReport, int]] = field(default_factory=list)
    """Everything that was posted, with the status it was given."""
    invalid: list[str] = field(default_factory=list)
    raw: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """The headers and the body of everything that was posted."""

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, path: str, body: bytes) -> int:
        with self._changed:
            try:
                report = _reports[path].validate_json(body)
            except (KeyError, ValidationError) as error:
                self.invalid.append(f"{path}: {error}: {body[:300]!r}")
                return 400
            status = self.answer(report)
            self.posts.append((report, status))
            self._changed.notify_all()
            return status

    def change(self, answer: Callable[[GatewayReport], int]) -> None:
        with self._changed:
            self.answer = answer

    @property
    def accepted(self) -> list[GatewayReport]:
        return [report for report, status in self.posts if status == 200]

    def of(self, kind: str, session_id: str = SESSION) -> list[Any]:
        """Return the accepted reports of one kind (`qr`, `receipt`, …; `message`) and session, in order."""
        return [
            report for report in self.accepted if report.name == f"gateway.{kind}" and report.session_id == session_id
        ]

    def wait_until(self, condition: Callable[[], Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"in vain; the last that came: {self.posts[-10:]}"

    def wait_for(self, kind: str, count: int = 1, session_id: str = SESSION) -> list[Any]:
        """Wait until so many reports of one kind were accepted."""
        self.wait_until(lambda: len(self.of(kind, session_id)) >= count)
        return self.of(kind, session_id)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: a second one waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.raw.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = receiver.take(self.path, body)
            if status == BREAK_OFF:
                self.close_connection = True
                return
            answer = json.dumps({"success": status == 200}).encode()
            with suppress(ConnectionError):  # a gateway that has given up hears nothing
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler


class Served:
    """An application on a real server with a port of its own, in a thread."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))  # listens at once: nobody has to wait for the server
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none", **options))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not stop"


class Gateway(Protocol):
    """A gateway under test: where it is, who hears its callbacks, and how to play the phone and the customer."""

    client: httpx.Client
    receiver: Receiver

    def scan(self, session_id: str, phone_number: str) -> None: ...

    def unlink(self, session_id: str) -> None: ...

    def customer_writes(self, session_id: str, **message: Any) -> str: ...

    def close(self) -> None: ...


class SimulatedGateway:
    """The simulator as a gateway under test."""

    def __init__(self, *, state_path: Path | None = None, server: dict[str, Any] | None = None, **options: Any) -> None:
        self._server = server or {}
        self._options = {"connecting_seconds": 0.02, "receipt_delay": 0.02, "state_path": state_path} | options
        self.receiver = Receiver()
        self._start()

    def _start(self) -> None:
        app = simulator_app(callback_url=self.receiver.url, **self._options)
        self.served = Served(app, **self._server)
        self.client = httpx.Client(base_url=self.served.url, trust_env=False, timeout=PATIENCE, verify=NO_TLS)

    def _stop(self) -> None:
        self.client.close()
        self.served.stop()

    def restart(self) -> None:
        self._stop()
        self._start()

    def close(self) -> None:
        self._stop()
        self.receiver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.receiver.invalid

    def control(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.request(method, f"/simulator{path}", json=body or None)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def scan(self, session_id: str, phone_number: str) -> None:
        self.control("POST", f"/sessions/{session_id}/scan", phoneNumber=phone_number)

    def unlink(self, session_id: str) -> None:
        self.control("POST", f"/sessions/{session_id}/unlink")

    def customer_writes(self, session_id: str, **message: Any) -> str:
        return self.control("POST", f"/sessions/{session_id}/customers", **message)["messageId"]

    def sent(self, **filters: str) -> list[dict[str, Any]]:
        return self.client.get("/simulator/sent", params=filters).json()["sent"]


def status_of(gateway: Gateway, session_id: str = SESSION) -> str:
    return gateway.client.get(f"/status/{session_id}").json()["session"]["status"]


def initialize(gateway: Gateway, session_id: str = SESSION) -> str:
    """Start a session and wait for its QR code, which is returned."""
    before = len(gateway.receiver.of("qr", session_id))
    answer = gateway.client.post("/init", json={"sessionId": session_id, "chatbotId": CHATBOT})
    assert answer.status_code == 200, answer.text
    return gateway.receiver.wait_for("qr", before + 1, session_id)[-1].data.qr_code


def connect(gateway: Gateway, session_id: str = SESSION, phone_number: str = PHONE) -> None:
    """Start a session, scan its QR code and wait until it is connected."""
    before = len(gateway.receiver.of("connected", session_id))
    initialize(gateway, session_id)
    gateway.scan(session_id, phone_number)
    gateway.receiver.wait_for("connected", before + 1, session_id)


def send(gateway: Gateway, **fields: Any) -> httpx.Response:
    return gateway.client.post("/send", json={"sessionId": SESSION, "to": CUSTOMER, "message": "hello"} | fields)


def decoded(qr_code: str) -> list[str]:
    """Return the texts of the QR codes in a PNG data URL."""
    kind, _, content = qr_code.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
        return [code.text for code in zxingcpp.read_barcodes(image.convert("L"))]
