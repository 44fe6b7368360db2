"""The consequences of an attempt to send a message, and the time of the next attempt."""

import random
from dataclasses import dataclass

from service.errors import GatewayError, GatewayOutcomeUnknown, GatewayRefused

_MAX_BACKOFF = 10.0
# The gateway lost the session, or it is not connected there although our row is CONNECTED: that is temporary.
_SESSION_TROUBLE = frozenset({"not_connected", "unknown_session"})


@dataclass(frozen=True, slots=True)
class SendPolicy:
    """Limits and delays of sending.

    Args:
        attempts: attempts whose outcome is unknown before a message fails.
        backoff: seconds before the second attempt; doubled before each further one.
        rate: messages per second and session in the long run.
        burst: messages of a session that may be sent at once.
        jitter: share by which a pause between messages is lengthened at random, at most.
        expiry: seconds after which a message is no longer sent.
        call_timeout: seconds one call to the gateway may take.
    """

    attempts: int = 3
    backoff: float = 2.0
    rate: float = 1.0
    burst: int = 20
    jitter: float = 0.3
    expiry: float = 3600.0
    call_timeout: float = 10.0

    @property
    def claim_seconds(self) -> float:
        """How long only one process may send a claimed message: longer than any call."""
        return self.call_timeout + 5.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay` seconds; `counts` is True if an attempt was used up."""

    delay: float
    counts: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The message fails."""

    code: str
    detail: str


def after_failure(error: GatewayError, *, attempts: int, deferrals: int, policy: SendPolicy) -> Retry | GiveUp:
    """Decide what follows a failed attempt.

    Args:
        error: the error of the attempt.
        attempts: attempts with unknown outcome, this one included.
        deferrals: failures in a row that used no attempt, this one included.
        policy: limits and delays of sending.
    """
    match error:
        case GatewayOutcomeUnknown():
            if attempts >= policy.attempts:
                return GiveUp(error.code, error.detail)
            return Retry(policy.backoff * 2 ** (attempts - 1), counts=True)
        case GatewayRefused() if error.code not in _SESSION_TROUBLE:
            return GiveUp(error.code, error.detail)
        case _:  # the session or the gateway cannot be used now
            return Retry(backoff(deferrals), counts=False)


def backoff(failures: int, *, first: float = 0.2, jitter: float | None = None) -> float:
    """Return the seconds to wait after failures in a row: 50 to 100 % of 0.2 s, doubled each time, of 10 s at most.

    Args:
        failures: failures in a row, from 1.
        first: seconds after the first failure.
        jitter: from 0 to 1 instead of a random number, for tests.
    """
    full = min(_MAX_BACKOFF, first * 2.0 ** min(failures - 1, 16))
    share = random.random() if jitter is None else jitter  # noqa: S311  # spreads load, protects nothing
    return full * (0.5 + share / 2)


def wait_for_token(tokens: float | None, elapsed: float, policy: SendPolicy) -> float:
    """Return the seconds until the next message of a session may be sent; 0 if it may be sent now.

    A pause is lengthened by a random share of at most `jitter`.

    Args:
        tokens: messages that could be sent at once `elapsed` seconds ago; None: none has been sent yet.
        elapsed: seconds since then.
        policy: `burst` messages may be sent at once, then `rate` per second.
    """
    least = max(0.0, (1 - _tokens(tokens, elapsed, policy)) / policy.rate)
    return least * (1 + policy.jitter * random.random())  # noqa: S311  # varies the pace, protects nothing


def taken(tokens: float | None, elapsed: float, policy: SendPolicy) -> float:
    """Return how many messages may be sent at once after one more was sent; see `wait_for_token`."""
    return _tokens(tokens, elapsed, policy) - 1


def _tokens(tokens: float | None, elapsed: float, policy: SendPolicy) -> float:
    return float(policy.burst) if tokens is None else min(policy.burst, tokens + elapsed * policy.rate)
