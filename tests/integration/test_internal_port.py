"""Two ports of one ingress: INTERNAL_PORT takes the gateway's callbacks alone, HTTP_PORT everything else."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.messaging import topology
from tests.amqp import Amqp
from tests.servers import Broker, free_ports
from tests.system import Process, System, eventually

KEY = "the-key-of-a-caller-0123"
TOKEN = "74" * 12
PROOF = {"Authorization": f"Bearer {TOKEN}"}
REPORT = {"type": "connected", "sessionId": "a-session-nobody-knows", "data": {}}
INCOMING = {"sessionId": "s", "from": "5491112345678", "message": "hi", "messageId": "A1", "timestamp": 1_700_000_000}
CALLBACKS = {"/whatsapp-qr/webhook": REPORT, "/whatsapp-qr/incoming": INCOMING}


@dataclass(frozen=True)
class Ports:
    """An ingress with both ports, a key and a token, beside an empty broker."""

    system: System
    ingress: Process
    internal_port: int

    async def public(self, method: str, path: str, **request: Any) -> httpx.Response:
        return await self.system.http.request(method, f"{self.ingress.url}{path}", **request)

    async def internal(self, method: str, path: str, **request: Any) -> httpx.Response:
        return await self.system.http.request(method, f"http://127.0.0.1:{self.internal_port}{path}", **request)

    async def counted(self, **labels: str) -> float:
        return await self.ingress.metric(self.system.http, "whatsapp_qr_requests_total", **labels)


@pytest.fixture(scope="module")
async def ports(shared_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    """The service's own process, listening twice."""
    folder, port = tmp_path_factory.mktemp("ports"), free_ports(1)[0]
    url = await shared_broker.renew()
    await topology.declare(url, 4)
    database = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
    system = System(url, database, folder, INTERNAL_PORT=str(port), API_KEYS=KEY, WEBHOOK_TOKEN=TOKEN)
    try:
        await system.migrate()
        [ingress] = await system.start("ingress")
        yield Ports(system, ingress, port)
    finally:
        await system.close()


def not_here(answer: httpx.Response) -> bool:
    """Whether the answer is what a path gets that does not exist, as a problem."""
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    return (body["code"], body["success"]) == ("not_found", False)


@pytest.mark.parametrize("path", CALLBACKS)
async def test_callbacks_are_taken_inside(ports: Ports, path: str) -> None:
    """What is reported there gets to the broker; who cannot prove to be the gateway is refused there too."""
    assert (await ports.internal("POST", path, json=CALLBACKS[path], headers=PROOF)).status_code == 200
    del ports.system.http.headers["X-API-Key"]
    refused = await ports.internal("POST", path, json=CALLBACKS[path])
    ports.system.http.headers["X-API-Key"] = KEY
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("path", CALLBACKS)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
async def test_callbacks_do_not_exist_outside(ports: Ports, path: str, method: str) -> None:
    """With the right token neither, and also for who asks which methods there are."""
    before = await ports.counted(route=path)
    assert not_here(await ports.public(method, path, json=CALLBACKS[path], headers=PROOF))
    assert await ports.counted(route=path) == before
    assert '"callback_at_public_port"' in ports.ingress.log()


@pytest.mark.parametrize("path", CALLBACKS)
@pytest.mark.parametrize(
    "disguise",
    [
        {"Host": "127.0.0.1:{port}"},
        {"Host": "whatsapp-qr-internal:{port}"},
        {"X-Forwarded-Port": "{port}", "X-Forwarded-Host": "127.0.0.1:{port}"},
        {"Forwarded": "host=127.0.0.1:{port}"},
        {"X-Original-URL": "/livez"},
    ],
    ids=["host", "name", "x-forwarded", "forwarded", "x-original-url"],
)
async def test_no_header_opens_the_inner_door(ports: Ports, path: str, disguise: dict[str, str]) -> None:
    """Only the socket says at which port a request came in."""
    headers = {name: value.format(port=ports.internal_port) for name, value in disguise.items()}
    assert not_here(await ports.public("POST", path, json=CALLBACKS[path], headers=headers | PROOF))


@pytest.mark.parametrize("spelling", ["{path}%0A", "{path}%0a", "/%77hatsapp-qr/{last}", "{path}?a=/livez", "{path}#x"])
@pytest.mark.parametrize("path", CALLBACKS)
async def test_no_spelling_opens_the_inner_door(ports: Ports, path: str, spelling: str) -> None:
    """The router takes some of these for the callback: so must whoever watches the door."""
    url = spelling.format(path=path, last=path.rpartition("/")[2])
    assert not_here(await ports.public("POST", url, json=CALLBACKS[path], headers=PROOF))


@pytest.mark.parametrize("path", CALLBACKS)
async def test_no_absolute_target_opens_the_inner_door(ports: Ports, path: str) -> None:
    """A request may name the whole URL, as to a proxy; what it names is not where it came in."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.system.ingress_port)
    target = f"http://127.0.0.1:{ports.internal_port}{path}"
    writer.write(f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_nothing_else_exists_inside(ports: Ports) -> None:
    """No call, page, health or metric: whoever reaches only that port can only report."""
    document = (await ports.public("GET", "/openapi.json")).json()
    everything = {(method, path) for path, methods in document["paths"].items() for method in methods}
    pages = {("get", path) for path in ("/docs", "/openapi.json", "/asyncapi", "/asyncapi.yaml", "/", "/nowhere")}
    inside = {("post", path) for path in CALLBACKS}
    assert inside < everything
    for method, path in (everything | pages) - inside:
        assert not_here(await ports.internal(method.upper(), path, headers=PROOF)), path
    for path in ("/livez", "/docs", "/metrics"):
        assert (await ports.public("GET", path)).status_code == 200


async def test_limit_counting_and_dead_letters_are_those_of_one_ingress(ports: Ports) -> None:
    """Too large: 413; not valid: 400 and kept; /metrics tells of both ports."""
    path = "/whatsapp-qr/webhook"
    async with Amqp(ports.system.amqp_url) as amqp:
        before = await amqp.waiting("whatsapp-qr.dead-letters")
        large = await ports.internal("POST", path, content=b"x" * 1_100_000, headers=PROOF)
        wrong = await ports.internal("POST", path, json={"type": "qr"}, headers=PROOF)
        assert (large.status_code, wrong.status_code) == (413, 400)
        await amqp.until_waiting("whatsapp-qr.dead-letters", before + 1)
    assert await ports.counted(route=path, status="400") >= 1
    assert await ports.counted(status="413") >= 1


async def test_without_it_one_port_serves_all(shared_broker: Broker, sqlite_database: str, tmp_path: Path) -> None:
    """As on a laptop."""
    system = System(await shared_broker.renew(), sqlite_database, tmp_path)
    await topology.declare(system.amqp_url, 4)
    try:
        await system.migrate()
        [ingress] = await system.start("ingress")
        for path, body in CALLBACKS.items():
            assert (await system.http.post(f"{ingress.url}{path}", json=body)).status_code == 200
        assert (await system.http.get(f"{ingress.url}/livez")).status_code == 200
    finally:
        await system.close()


async def test_a_stop_ends_what_has_begun_at_both(clean_broker: str, sqlite_database: str, tmp_path: Path) -> None:
    """Both ports close at once; a request that was being read at either is still answered; the status is 0."""
    port = free_ports(1)[0]
    system = System(clean_broker, sqlite_database, tmp_path, INTERNAL_PORT=str(port))
    await topology.declare(clean_broker, 4)
    await system.migrate()
    [ingress] = await system.start("ingress")
    public = await begun(system.ingress_port, "/whatsapp-qr/disconnect", {"chatbotId": "no id"})
    internal = await begun(port, "/whatsapp-qr/incoming", INCOMING)
    ingress.send_signal(signal.SIGTERM)
    for closed in (system.ingress_port, port):
        await eventually(lambda closed=closed: is_closed(closed))
    assert (await public.finished())[:12] == b"HTTP/1.1 400"
    assert (await internal.finished())[:12] == b"HTTP/1.1 200"
    assert await ingress.ended() == 0
    await system.close()


@dataclass(frozen=True)
class Begun:
    """A request whose body the ingress has asked for."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes

    async def finished(self) -> bytes:
        """Send the body and return the answer."""
        self.writer.write(self.body)
        answer = await self.reader.read()
        self.writer.close()
        return answer


async def begun(port: int, path: str, body: dict[str, Any]) -> Begun:
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    return Begun(reader, writer, content)


async def is_closed(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("taken", ["HTTP_PORT", "INTERNAL_PORT"])
async def test_a_port_in_use_is_named(sqlite_database: str, tmp_path: Path, taken: str) -> None:
    """One sentence says which of the two it is, and status 2 that nothing else was tried."""
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as other:
        number = other.getsockname()[1]
        ports = {"HTTP_PORT": str(free_ports(1)[0]), "INTERNAL_PORT": str(free_ports(1)[0])} | {taken: str(number)}
        system = System("amqp://127.0.0.1:1/", sqlite_database, tmp_path)
        process = system._process("ingress", **ports)
        await process.start()
        assert await process.ended() == 2
    assert f"Cannot listen on 127.0.0.1:{number}: Address already in use" in process.log()
    assert process.log().rstrip().endswith(f"or set {taken}")
    await system.close()


async def test_one_port_for_both_is_refused(sqlite_database: str, tmp_path: Path) -> None:
    """The public would reach the callbacks."""
    system = System("amqp://127.0.0.1:1/", sqlite_database, tmp_path)
    process = system._process("ingress", INTERNAL_PORT=str(system.ingress_port))
    await process.start()
    assert await process.ended() == 2
    assert "HTTP_PORT and INTERNAL_PORT are both" in process.log()
    await system.close()
