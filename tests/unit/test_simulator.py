"""The simulator's phones by the clock, without waiting for it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from pydantic import ValidationError

from service.errors import Rejected
from service.simulator.app import simulator_app
from service.simulator.callbacks import pause_after
from service.simulator.control import Scan
from service.simulator.faults import FailureKind, Faults
from service.simulator.phones import PairingPace, Phones
from service.simulator.reporting import Reports
from service.simulator.store import Callback, Store
from whatsapp_qr_contracts.message import SessionStatus

SESSION = "session_a"
CHATBOT = "11111111-1111-4111-8111-111111111111"
PHONE = "5491100000000"


@dataclass
class World:
    """Phones with a clock to turn."""

    now: float = 1_700_000_000.0
    store: Store = field(default_factory=Store)
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pace = PairingPace(connecting_seconds=1, qr_seconds=20, qr_limit=2)
        self.phones = Phones(self.store, Reports(self.store, self.woken.append, self.clock), pace, self.clock)

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float) -> SessionStatus | None:
        self.now += seconds
        session = self.phones.advance()
        return session.status if session else None


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.store.close()


def test_a_pairing_goes_on_when_its_time_has_come_and_not_before(world: World) -> None:
    assert world.phones.next_advance() is None
    assert world.phones.start(SESSION, CHATBOT)
    assert world.phones.next_advance() == 1
    assert world.after(0.5) is None
    assert world.after(0.5) is SessionStatus.QR_READY
    assert world.after(19) is None
    assert world.after(1) is SessionStatus.QR_READY
    assert world.after(20) is SessionStatus.DISCONNECTED
    assert world.phones.next_advance() is None
    assert world.woken == [SESSION] * 3


def test_starting_a_running_session_does_not_move_its_clock(world: World) -> None:
    world.phones.start(SESSION, CHATBOT)
    world.now += 0.5
    assert not world.phones.start(SESSION, CHATBOT)
    assert world.phones.next_advance() == 0.5


def test_resuming_shows_a_new_code_at_once(world: World) -> None:
    world.phones.start(SESSION, CHATBOT)
    world.after(1)
    old = world.phones.get(SESSION).qr_code
    world.phones.resume()
    assert world.after(0) is SessionStatus.QR_READY
    assert world.phones.get(SESSION).qr_code != old


def test_the_number_is_kept_over_a_lost_connection_and_not_over_a_logout(world: World) -> None:
    world.phones.start(SESSION, CHATBOT)
    world.after(1)
    world.phones.scan(SESSION, PHONE)
    assert world.phones.drop(SESSION).phone_number == PHONE
    assert world.phones.reconnect(SESSION).status is SessionStatus.CONNECTED
    assert world.phones.unlink(SESSION).phone_number is None
    with pytest.raises(Rejected, match="No phone is linked"):
        world.phones.reconnect(SESSION)


def test_a_refused_action_changes_and_reports_nothing(world: World) -> None:
    world.phones.start(SESSION, CHATBOT)
    before = world.phones.get(SESSION)
    with pytest.raises(Rejected) as refusal:
        world.phones.scan(SESSION, PHONE)
    assert refusal.value.code == "no_qr_code"
    assert (world.phones.get(SESSION), world.woken) == (before, [])


def test_callbacks_are_taken_in_the_order_of_their_time(world: World) -> None:
    for body, due in ((b"read", 3), (b"now", 1), (b"also now", 1), (b"delivered", 2)):
        world.store.add_callback(Callback(session_id=SESSION, path="/", body=body, due=due))
    taken = []
    while callback := world.store.next_callback(SESSION):
        taken.append(callback.body)
        world.store.remove_callback(callback)
    assert taken == [b"now", b"also now", b"delivered", b"read"]
    assert world.store.waiting_callbacks() == {}


def test_a_transaction_that_fails_leaves_nothing(world: World) -> None:
    def store_and_fail() -> None:
        with world.store.transaction():
            world.store.add_callback(Callback(session_id=SESSION, path="/", body=b"", due=0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        store_and_fail()
    assert world.store.next_callback(SESSION) is None


def test_only_a_phone_number_can_scan() -> None:
    assert Scan.model_validate({"phoneNumber": "+54 9 11 0000-0000"}).phone_number == PHONE
    with pytest.raises(ValidationError):
        Scan.model_validate({"phoneNumber": "120363000000000000@g.us"})


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 3.2), (6, 5), (7, 5), (10_000, 5)]
)
def test_the_pause_before_the_next_attempt_doubles_up_to_five_seconds(attempt: int, seconds: float) -> None:
    assert pause_after(attempt) == pytest.approx(seconds)


@pytest.mark.parametrize(("rate", "least", "most"), [(0, 0, 0), (1, 400, 400), (0.5, 100, 300)])
def test_the_failure_rate_is_the_share_of_sends_that_fail(rate: float, least: int, most: int) -> None:
    faults = Faults(failure_rate=rate, failure_kind=FailureKind.ERROR)
    assert least <= sum(faults.strike() is FailureKind.ERROR for _ in range(400)) <= most


@pytest.mark.parametrize("fields", [{"failureRate": 2}, {"latency": -1}, {"failureKind": "rain"}, {"typo": 1}])
def test_impossible_faults_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Faults.model_validate(fields)


def test_a_second_login_ends_the_first(world: World) -> None:
    """As WhatsApp does where a session is opened that is open already: the reason is `replaced`, the phone unlinked."""
    world.phones.start(SESSION, CHATBOT)
    world.after(1)
    world.phones.scan(SESSION, PHONE)
    replaced = world.phones.replace(SESSION)
    assert (replaced.status, replaced.phone_number) == (SessionStatus.DISCONNECTED, None)
    with pytest.raises(Rejected):
        world.phones.replace(SESSION)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"origin": "http://localhost:3000"}, None),
        ({"host": "evil.example"}, "foreign_host"),
        ({"origin": "https://evil.example"}, "foreign_origin"),
        ({"x-forwarded-for": "192.0.2.1"}, "forwarded"),
        ({"via": "1.1 proxy"}, "forwarded"),
    ],
)
@pytest.mark.parametrize("path", ["/sessions", "/simulator/faults", "/health", "/nowhere"])
async def test_web_pages_play_no_phone(headers: dict[str, str], code: str | None, path: str) -> None:
    """On loopback the simulator checks Host and Origin as the ingress does; where others may reach it, it does not."""
    for only_here in (True, False):
        app = simulator_app(callback_url="http://127.0.0.1:9", only_here=only_here)
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as http:
            answer = await http.get(f"http://127.0.0.1:3001{path}", headers=headers)
        if only_here and code:
            assert (answer.status_code, answer.json()["code"]) == (403, code)
        else:
            assert answer.status_code == (404 if path == "/nowhere" else 200)
