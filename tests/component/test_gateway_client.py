"""The gateway's client against a real HTTP server: what each answer, silence or broken connection means."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.domain.reported import Connected, NoAnswer, OtherState, Reported, UnknownSession, UnknownWord
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable
from service.gateway import Gateway, Timeouts
from tests.servers import free_ports
from tests.system import SECONDS, eventually
from whatsapp_qr_contracts.message import SessionStatus

OUR_ID = "3EB0123456789ABCDEF012"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answering(body: Any, status: int = 200, *, headers: str = "", last: bool = False) -> Answer:
    """Answer with a status and a body: text as it is, anything else as JSON."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    connection = "close" if last else "keep-alive"
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-length: {len(content)}\r\n"

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"{head}connection: {connection}\r\n{headers}\r\n".encode() + content)
        await writer.drain()
        if last:
            writer.close()

    return answer


async def dropping(writer: asyncio.StreamWriter) -> None:
    """Take the call and close the connection."""
    writer.close()


async def dropping_halfway(writer: asyncio.StreamWriter) -> None:
    """Begin to answer and close the connection."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()


async def silent(_writer: asyncio.StreamWriter) -> None:
    """Take the call and never answer."""
    await asyncio.Event().wait()


async def dribbling(writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time, each sooner than any limit on a single read."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


class GatewayServer:
    """A server that answers as it was told; `taken` are the calls that reached it."""

    def __init__(self) -> None:
        self.answer: Answer = answering({"success": True})
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = [int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")]
                body = await reader.readexactly(length[0]) if length else b"{}"
                self.taken.append((" ".join(head.split()[:2]), json.loads(body)))
                await self.answer(writer)
        writer.close()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def server() -> AsyncIterator[GatewayServer]:
    server = GatewayServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(server: GatewayServer) -> AsyncIterator[Gateway]:
    gateway = Gateway(server.url + "/", Timeouts(send=SECONDS, init=SECONDS, other=SECONDS))
    yield gateway
    await gateway.close()


@pytest.fixture
async def impatient(server: GatewayServer) -> AsyncIterator[Gateway]:
    """A client whose time is soon up, for a server that never answers."""
    gateway = Gateway(server.url + "/", Timeouts(send=2, init=2, other=2))
    yield gateway
    await gateway.close()


async def send(gateway: Gateway) -> str:
    return await gateway.send("s", "5491112345678", "hello", OUR_ID)


async def failure_of(gateway: Gateway) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await send(gateway)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (answering({"success": True}), "ok"),
        (answering({"success": False}, 503), "unreachable"),
        (answering({"success": False}, 500), "unknown"),
        (silent, "unknown"),
        (answering({"success": False, "error": "no"}, 400), "refused"),
    ],
)
async def test_each_call_is_timed(
    server: GatewayServer, gateway: Gateway, impatient: Gateway, answer: Answer, outcome: str
) -> None:
    """By call and by how it ended."""
    if answer is silent:
        gateway = impatient

    def timed(call: str) -> float:
        labels = {"call": call, "outcome": outcome}
        return REGISTRY.get_sample_value("whatsapp_qr_gateway_seconds_count", labels) or 0

    server.answer = answer
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "init": lambda: gateway.initialize("s", "c"),
        "disconnect": lambda: gateway.disconnect("s"),
        "status": lambda: gateway.status("s"),
        "sessions": gateway.sessions,
        "send": lambda: send(gateway),
    }
    before = {name: timed(name) for name in calls}
    ends = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
    assert [end for end in ends if isinstance(end, Exception) and not isinstance(end, GatewayError)] == []
    assert {name: timed(name) - before[name] for name in calls} == dict.fromkeys(calls, 1)


# What is sent


async def test_calls_are_those_of_the_contract(server: GatewayServer, gateway: Gateway) -> None:
    """Method, path and body of every call."""
    await gateway.initialize("s", "c")
    await send(gateway)
    await gateway.disconnect("s")
    server.answer = answering({"success": True, "session": {"sessionId": "s", "status": "CONNECTED"}})
    await gateway.status("s")
    await gateway.sessions()
    await gateway.qr_code("s")
    assert server.taken == [
        ("POST /init", {"sessionId": "s", "chatbotId": "c"}),
        ("POST /send", {"sessionId": "s", "to": "5491112345678", "message": "hello", "messageId": OUR_ID}),
        ("POST /disconnect", {"sessionId": "s"}),
        ("GET /status/s", {}),
        ("GET /sessions", {}),
        ("GET /qr-code/s", {}),
    ]


async def test_connections_are_pooled(server: GatewayServer, gateway: Gateway) -> None:
    """Calls one after another use one TCP connection; calls at once use several."""
    for _ in range(10):
        await send(gateway)
    assert server.connections == 1
    await asyncio.gather(*(send(gateway) for _ in range(5)))
    assert 1 < server.connections <= 5


# The answers


async def test_the_list_of_sessions_is_read_as_far_as_it_can_be(server: GatewayServer, gateway: Gateway) -> None:
    """Entries by their ids; a status of the gateway's own is unknown, what is no session is left out."""
    entries = [
        {"sessionId": "a", "status": "connected", "phoneNumber": "1"},
        {"sessionId": "b"},
        {"status": "CONNECTED"},
        "c",
    ]
    server.answer = answering({"success": True, "sessions": entries})
    assert await gateway.sessions() == {
        "a": Connected("1"),
        "b": UnknownWord(),
    }


@pytest.mark.parametrize(
    "answer", [answering({"error": "Not found"}, 404), answering({"success": True}), answering({"sessions": {}})]
)
async def test_a_gateway_may_have_no_list(server: GatewayServer, gateway: Gateway, answer: Answer) -> None:
    """Without a list nothing is known, which is not the same as no sessions."""
    server.answer = answer
    assert await gateway.sessions() is None


async def test_a_gateway_that_fails_to_list_says_nothing(server: GatewayServer, gateway: Gateway) -> None:
    """An error or silence is no empty list: whoever asks has to know."""
    server.answer = answering({"error": "later"}, 503)
    with pytest.raises(GatewayUnreachable):
        await gateway.sessions()
    server.answer = answering("", 500)
    with pytest.raises(GatewayOutcomeUnknown):
        await gateway.sessions()


async def test_a_qr_code_may_not_be_there(server: GatewayServer, gateway: Gateway) -> None:
    """404 and an empty code mean none."""
    server.answer = answering({"success": True, "qrCode": "data:x"})
    assert await gateway.qr_code("s") == "data:x"
    server.answer = answering({"success": False, "error": "none"}, 404)
    assert await gateway.qr_code("s") is None
    server.answer = answering({"success": True, "qrCode": ""})
    assert await gateway.qr_code("s") is None


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("ITS-OWN", "ITS-OWN"),
        (OUR_ID, OUR_ID),
        ("IT\x00S", "ITS"),
        *((bad, OUR_ID) for bad in (None, "", 7, {"id": "x"}, "x" * 201, "\x00")),
    ],
)
async def test_the_gateways_own_message_id_is_returned(
    server: GatewayServer, gateway: Gateway, given: object, stored: str
) -> None:
    """Where it gives one that can be stored; else ours, under which it was asked to send."""
    server.answer = answering({"success": True, "messageId": given})
    assert await send(gateway) == stored


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({"status": "CONNECTED", "phoneNumber": "549"}, Connected("549")),
        ({"status": "CONNECTED", "phoneNumber": ""}, Connected()),
        ({"status": "qr_ready", "qrCode": "data:"}, OtherState(SessionStatus.QR_READY, "data:")),
        ({"status": "DISCONNECTED"}, OtherState(SessionStatus.DISCONNECTED)),
        ({"status": "open", "phoneNumber": ""}, UnknownWord()),
        ({}, UnknownWord()),
        (None, UnknownWord()),
    ],
)
async def test_what_the_gateway_says_about_a_session(
    server: GatewayServer, gateway: Gateway, said: object, understood: Reported
) -> None:
    """A word of its own is not taken for a status of ours."""
    server.answer = answering({"success": True, "session": said})
    assert await gateway.status("s") == understood


@pytest.mark.parametrize(
    "body", [{"success": False, "error": "none"}, "<h1>not here</h1>", {"code": "unknown_session"}]
)
async def test_an_unknown_session_is_said_so(server: GatewayServer, gateway: Gateway, body: object) -> None:
    """404 is an answer of status(); for disconnect() it means that nothing is left to do."""
    server.answer = answering(body, 404)
    assert await gateway.status("s") == UnknownSession()
    await gateway.disconnect("s")
    assert (await failure_of(gateway)).code == "unknown_session"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (answering({"error": "later"}, 503), GatewayUnreachable),
        (answering({"error": "crash"}, 500), GatewayOutcomeUnknown),
        (answering({"error": "no"}, 401), GatewayRefused),
        (silent, GatewayOutcomeUnknown),
    ],
)
async def test_that_it_does_not_say_is_an_answer_too(
    server: GatewayServer, impatient: Gateway, answer: Answer, error: type[GatewayError]
) -> None:
    """status() raises nothing: whoever asks has to know what to do then, and hears the reason."""
    server.answer = answer
    said = await impatient.status("s")
    assert isinstance(said, NoAnswer)
    assert type(said.error) is error


@pytest.mark.parametrize("code", ["unknown_session", "not_connected", "not_on_whatsapp", "restricted", "refused"])
async def test_a_refusal_with_a_code_is_explicit(server: GatewayServer, gateway: Gateway, code: str) -> None:
    """Text and code are the gateway's."""
    server.answer = answering({"success": False, "error": "because", "code": code}, 400)
    error = await failure_of(gateway)
    assert isinstance(error, GatewayRefused)
    assert (error.code, error.detail, error.explicit) == (code, "because", True)


@pytest.mark.parametrize(
    "body", [{"success": False, "error": "because"}, "because", "", {"code": 7}, [1], {"error": {}}]
)
@pytest.mark.parametrize("status", [400, 401, 422])
async def test_a_refusal_without_a_code_is_not_explicit(
    server: GatewayServer, gateway: Gateway, body: object, status: int
) -> None:
    """Whoever sends then asks /status what it means; also where the answer is no JSON."""
    server.answer = answering(body, status)
    error = await failure_of(gateway)
    assert isinstance(error, GatewayRefused)
    assert (error.code, error.explicit) == ("refused", False)
    assert error.detail in {"because", f"the gateway answered {status}"}


async def test_what_the_gateway_says_can_be_stored(server: GatewayServer, gateway: Gateway) -> None:
    """PostgreSQL refuses U+0000: an error text with one must not keep a message from being recorded as failed."""
    server.answer = answering({"success": False, "error": "a\x00b\ud800", "code": "ref\x00used"}, 400)
    error = await failure_of(gateway)
    assert (error.detail, error.code) == ("ab\ufffd", "refused")


async def test_a_refusal_with_status_200_is_a_refusal(server: GatewayServer, gateway: Gateway) -> None:
    """`success: false` is never taken for a message that was sent."""
    server.answer = answering({"success": False, "error": "because", "code": "not_connected"})
    assert (await failure_of(gateway)).code == "not_connected"


@pytest.mark.parametrize("body", ["<h1>welcome</h1>", "", "[]", "null", "[" * 100_000])
async def test_a_success_that_is_no_answer_is_an_unknown_outcome(
    server: GatewayServer, gateway: Gateway, body: str
) -> None:
    """Something else than a gateway answered: neither sent nor certainly not sent."""
    server.answer = answering(body)
    assert type(await failure_of(gateway)) is GatewayOutcomeUnknown


# The call was not taken


async def test_a_refused_connection_is_unreachable() -> None:
    """Nobody listens: nothing has happened."""
    gateway = Gateway(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert type(await failure_of(gateway)) is GatewayUnreachable
    await gateway.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("body", [{"success": False, "error": "later"}, "<h1>Bad Gateway</h1>"])
async def test_a_proxy_that_found_no_gateway_is_unreachable(
    server: GatewayServer, gateway: Gateway, status: int, body: object
) -> None:
    """The gateway, or what stands before it, says that it did not take the call."""
    server.answer = answering(body, status)
    assert type(await failure_of(gateway)) is GatewayUnreachable


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_a_success(server: GatewayServer, gateway: Gateway, status: int) -> None:
    """A proxy that sends us elsewhere has sent no message."""
    server.answer = answering("", status, headers="location: https://elsewhere.invalid/\r\n")
    assert type(await failure_of(gateway)) is GatewayUnreachable


# It is not known whether it was taken


@pytest.mark.parametrize("broken", [answering({"error": "crash"}, 500), dropping, dropping_halfway])
async def test_an_answer_that_does_not_come_is_an_unknown_outcome(
    server: GatewayServer, gateway: Gateway, broken: Answer
) -> None:
    """500, a dropped connection: the call reached it once."""
    server.answer = broken
    assert type(await failure_of(gateway)) is GatewayOutcomeUnknown
    assert len(server.taken) == 1
    server.answer = answering({"success": True})
    assert await send(gateway) == OUR_ID  # the pool is usable afterwards


@pytest.mark.parametrize("broken", [silent, dribbling])
async def test_an_answer_that_has_no_end_is_an_unknown_outcome(
    server: GatewayServer, impatient: Gateway, broken: Answer
) -> None:
    """Silence, or a byte now and then for minutes: the call reached it once, and ends with the time-out."""
    server.answer = broken
    async with asyncio.timeout(SECONDS):
        assert type(await failure_of(impatient)) is GatewayOutcomeUnknown

    async def taken() -> int:
        return len(server.taken)

    assert await eventually(taken) == 1
    server.answer = answering({"success": True})
    assert await send(impatient) == OUR_ID  # the pool is usable afterwards


@pytest.mark.parametrize("last", [True, False])
async def test_a_connection_that_the_server_has_closed_is_not_used_again(
    server: GatewayServer,
    gateway: Gateway,
    last: bool,  # noqa: FBT001
) -> None:
    """Closed with the answer, or while it was idle in the pool: the next call opens a new one and arrives once."""
    server.answer = answering({"success": True}, last=last)
    await send(gateway)
    for writer in server.writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def pooled() -> int:
        return len(gateway._http.connector._conns)  # type: ignore[union-attr]  # nothing public says it

    await eventually(pooled, lambda found: not found)
    server.answer = answering({"success": True, "messageId": "SECOND"})
    assert await send(gateway) == "SECOND"
    assert (len(server.taken), server.connections) == (2, 2)


async def test_a_pooled_connection_that_dies_under_a_call_is_an_unknown_outcome(
    server: GatewayServer, gateway: Gateway
) -> None:
    """The server may have taken the call before it closed: it is never repeated silently, nor called "not sent"."""
    await send(gateway)
    server.answer = dropping
    assert type(await failure_of(gateway)) is GatewayOutcomeUnknown
    assert (len(server.taken), server.connections) == (2, 1)
