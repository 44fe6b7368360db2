"""The caller that most tests are: it repeats what is harmless, and nothing else."""

import httpx
import pytest

from tests.careful import CarefulTransport

DATABASE, BROKER = "database_unavailable", "broker_unavailable"
KEY = {"Idempotency-Key": "one"}


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The codes of the 503 that are answered first; then comes 200."""
    codes: list[str] = []

    async def answer(_transport: httpx.AsyncHTTPTransport, _request: httpx.Request) -> httpx.Response:
        kind = {"content-type": "application/problem+json"}
        return httpx.Response(503, json={"code": codes.pop(0)}, headers=kind) if codes else httpx.Response(200)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)
    return codes


@pytest.mark.parametrize(
    ("path", "headers", "code", "status"),
    [
        ("/send", {}, BROKER, 503),
        ("/send", {}, DATABASE, 200),
        ("/send", KEY, BROKER, 200),
        ("/incoming", {}, BROKER, 200),
    ],
)
async def test_it_repeats_what_cannot_happen_twice(
    refusals: list[str], path: str, headers: dict[str, str], code: str, status: int
) -> None:
    """A send without a key may have arrived although the broker did not say so."""
    refusals += [code, code]
    transport = CarefulTransport()
    transport.careful = True
    async with httpx.AsyncClient(transport=transport) as http:
        answer = await http.post(f"http://ingress{path}", headers=headers)
    assert (answer.status_code, len(refusals)) == (status, 0 if status == 200 else 1)


async def test_who_asks_for_it_is_told(refusals: list[str]) -> None:
    """For tests in which a server is away."""
    refusals += [DATABASE, DATABASE]
    transport = CarefulTransport()
    transport.careful = True
    async with httpx.AsyncClient(transport=transport) as http:
        with transport.careless():
            assert (await http.get("http://ingress/")).status_code == 503
        assert (await http.get("http://ingress/")).status_code == 200
