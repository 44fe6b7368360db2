"""Delivery states, what follows a failed attempt, and the pace of a session."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.delivery import raised
from service.domain.sending import GiveUp, Retry, SendPolicy, after_failure, backoff, taken, wait_for_token
from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused, GatewayUnreachable
from whatsapp_qr_contracts.message import DeliveryStatus

D = DeliveryStatus
ORDER = [D.PENDING, D.SENT, D.DELIVERED, D.READ]
statuses = st.sampled_from(list(D))


@pytest.mark.parametrize(("current", "reported"), list(product(ORDER, ORDER)))
def test_a_status_only_rises(current: DeliveryStatus, reported: DeliveryStatus) -> None:
    """A late or repeated receipt changes nothing."""
    assert raised(current, reported) is (reported if ORDER.index(reported) > ORDER.index(current) else None)


@pytest.mark.parametrize(
    ("current", "lowered"),
    [(D.PENDING, True), (D.SENT, True), (D.DELIVERED, False), (D.READ, False), (D.FAILED, False)],
)
def test_failed_lowers_only_pending_and_sent(current: DeliveryStatus, lowered: bool) -> None:  # noqa: FBT001
    """What has reached the phone has not failed."""
    assert raised(current, D.FAILED) is (D.FAILED if lowered else None)


@pytest.mark.parametrize(
    ("reported", "corrects"), [(D.PENDING, False), (D.SENT, True), (D.DELIVERED, True), (D.READ, True)]
)
def test_a_receipt_corrects_a_failure(reported: DeliveryStatus, corrects: bool) -> None:  # noqa: FBT001
    """After an unknown outcome the message may have been sent all the same: the proof of it counts."""
    assert raised(D.FAILED, reported) is (reported if corrects else None)


@given(st.lists(statuses))
def test_no_sequence_of_reports_lowers_what_was_proved(reports: list[DeliveryStatus]) -> None:
    """Once DELIVERED never less, once READ always READ, and never PENDING again."""
    status, best = D.PENDING, 0
    for reported in reports:
        status = raised(status, reported) or status
        if best >= ORDER.index(D.DELIVERED):
            assert status is not D.FAILED
            assert ORDER.index(status) >= best
        best = max(best, ORDER.index(status) if status in ORDER else 0)
        assert status is not D.PENDING or best == 0


@given(st.lists(statuses.filter(lambda status: status is not D.PENDING), min_size=1).flatmap(
    lambda reports: st.tuples(st.just(reports), st.permutations(reports))
))  # fmt: skip
def test_proof_of_delivery_counts_in_any_order(both: tuple[list[DeliveryStatus], list[DeliveryStatus]]) -> None:
    """Receipts that arrive in another order lead to the same status, where one of them reached the phone."""
    ends = []
    for reports in both:
        status = D.PENDING
        for reported in reports:
            status = raised(status, reported) or status
        ends.append(status)
    if {D.DELIVERED, D.READ} & set(both[0]):
        assert ends[0] is ends[1]


UNKNOWN, UNREACHABLE = GatewayOutcomeUnknown("?"), GatewayUnreachable("away")
POLICY = SendPolicy(attempts=3, backoff=2.0)


def refused(code: str | None) -> GatewayRefused:
    return GatewayRefused("no", code=code)


@pytest.mark.parametrize(
    ("error", "attempts", "verdict"),
    [
        (UNKNOWN, 1, Retry(2.0, counts=True)),
        (UNKNOWN, 2, Retry(4.0, counts=True)),
        (UNKNOWN, 3, GiveUp("outcome_unknown", "?")),
        (UNKNOWN, 4, GiveUp("outcome_unknown", "?")),
        (refused("not_on_whatsapp"), 0, GiveUp("not_on_whatsapp", "no")),
        (refused("restricted"), 2, GiveUp("restricted", "no")),
        (refused(None), 0, GiveUp("refused", "no")),
    ],
)
def test_what_follows_a_failed_attempt(error: GatewayError, attempts: int, verdict: Retry | GiveUp) -> None:
    """Unknown outcomes count, wait 2 s then 4 s and end the third time; a refusal of the message ends it at once."""
    assert after_failure(error, attempts=attempts, deferrals=1, policy=POLICY) == verdict


@pytest.mark.parametrize(
    "error", [UNREACHABLE, refused("not_connected"), refused("unknown_session"), GatewayError("x")]
)
@pytest.mark.parametrize("deferrals", [1, 5, 100])
def test_what_did_not_reach_the_gateway_is_no_attempt(error: GatewayError, deferrals: int) -> None:
    """However long the gateway or its session is away, no attempt is used up and the waits stay below 10 s."""
    verdict = after_failure(error, attempts=99, deferrals=deferrals, policy=POLICY)
    assert isinstance(verdict, Retry)
    assert not verdict.counts
    assert 0.1 <= verdict.delay <= 10


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_grows_from_a_fifth_of_a_second_to_ten(failures: int, jitter: float) -> None:
    """Between half and the whole of 0.2 s doubled each time, never above 10 s, never an overflow."""
    full = min(10.0, 0.2 * 2.0 ** min(failures - 1, 50))
    assert full / 2 <= backoff(failures, jitter=jitter) <= full
    assert full / 2 <= backoff(failures) <= full


def test_a_claim_outlives_the_call() -> None:
    """Nobody else may claim a message while its call runs."""
    assert SendPolicy(call_timeout=10).claim_seconds == 15


class Lane:
    """A lane's row, as far as its pace is concerned."""

    def __init__(self, rate: float, burst: int, jitter: float = 0.0) -> None:
        self.policy = SendPolicy(rate=rate, burst=burst, jitter=jitter)
        self.tokens: float | None = None
        self.at = 0.0

    def wait(self, now: float) -> float:
        return wait_for_token(self.tokens, now - self.at, self.policy)

    def take(self, now: float) -> None:
        self.tokens, self.at = taken(self.tokens, now - self.at, self.policy), now


class Session:
    """A session's pace as its lane's row keeps it."""

    def __init__(self, **policy: float) -> None:
        self.policy, self.tokens, self.at = SendPolicy(**policy), None, 0.0  # type: ignore[arg-type]

    def wait(self, now: float) -> float:
        return wait_for_token(self.tokens, now - self.at, self.policy)

    def send(self, now: float) -> None:
        self.tokens, self.at = taken(self.tokens, now - self.at, self.policy), now  # type: ignore[assignment]


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 30),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10)), max_size=40),
)
def test_a_session_never_sends_more_than_it_should(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    """In any window of time at most burst + rate times its length messages go."""
    session, now, gone = Session(rate=rate, burst=burst, jitter=0), 0.0, []
    for pause, wishes in steps:
        now += pause
        for _ in range(wishes):
            if not session.wait(now):
                session.send(now)
                gone.append(now)
    for first, begin in enumerate(gone):
        for last in range(first, len(gone)):
            assert last - first + 1 <= burst + rate * (gone[last] - begin) + 1e-6


@given(rate=st.floats(0.1, 50), burst=st.integers(1, 5), jitter=st.floats(0, 1))
def test_a_session_says_how_long_to_wait(rate: float, burst: int, jitter: float) -> None:
    """`burst` messages go at once; the next after 1/rate, lengthened by the jitter's share at most, may go."""
    session = Session(rate=rate, burst=burst, jitter=jitter)
    for _ in range(burst):
        assert session.wait(100.0) == 0
        session.send(100.0)
    pause = session.wait(100.0)
    assert 1 / rate * (1 - 1e-9) <= pause <= (1 + jitter) / rate * (1 + 1e-9)
    assert session.wait(100.0 + pause + 1e-6) == 0


def test_pauses_differ() -> None:
    """So that a session does not look like a machine."""
    session = Session(rate=1, burst=1, jitter=0.3)
    session.send(0.0)
    assert len({session.wait(0.0) for _ in range(10)}) > 1
