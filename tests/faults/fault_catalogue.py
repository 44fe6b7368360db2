"""The fault catalogue: everything that can go wrong, by the name under which a schedule orders it."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from tests.faults import harms
from tests.faults.deployment import Deployment
from tests.faults.retried_calls import until_accepted

Fault = Callable[[Deployment, random.Random], AbstractAsyncContextManager[None]]


def _proxied(name: str, ill: Callable[[Any], None]) -> Fault:
    @asynccontextmanager
    async def fault(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
        proxy = getattr(deployment, name)
        ill(proxy)
        try:
            yield
        finally:
            proxy.heal()

    return fault


def failing(**faults: Any) -> Fault:
    """Return what the gateway does while it has these faults."""

    @asynccontextmanager
    async def fault(deployment: Deployment, _dice: random.Random) -> AsyncIterator[None]:
        url = f"{deployment.system.controls}/faults"

        async def put(body: dict[str, Any]) -> None:
            await until_accepted(lambda: deployment.system.http.put(url, json=body), 200)

        await put(faults)
        try:
            yield
        finally:
            await put({})

    return fault


ANYWHERE: dict[str, Fault] = {
    "a process killed": harms.killed,
    "processes killed at a step": harms.killed_at_a_step,
    "rolling SIGTERM": harms.rolled_out,
    "a process more": harms.joined,
    "a process hanging": harms.hanging,
    "broker killed": harms.broker_killed,
    "broker restarted": harms.broker_restarted,
    "broker connections cut": _proxied("broker_proxy", lambda proxy: proxy.cut()),
    "broker connections half cut": _proxied("broker_proxy", lambda proxy: proxy.cut_clients()),
    "broker unreachable": _proxied("broker_proxy", lambda proxy: proxy.refuse()),
    "broker in a black hole": _proxied("broker_proxy", lambda proxy: proxy.lose()),
    "broker answers held back": _proxied("broker_proxy", lambda proxy: proxy.hold_answers()),
    "broker slow": _proxied("broker_proxy", lambda proxy: proxy.slow(0.15)),
    "broker memory alarm": harms.broker_memory_alarm,
    "broker disk full": harms.broker_disk_full,
    "broker's queue of jobs full": harms.jobs_full,
    "broker's refusal of a job": harms.flagged("refused"),
    "broker's queue of a subscriber full": harms.subscriber_full,
    "database away": harms.database_away,
    "database's answers lost": harms.flagged("unsure"),
    "gateway away": harms.gateway_away,
    "gateway slow": failing(latency=0.8, initLatency=2),
    "gateway answers 500": failing(failureRate=0.4, failureKind="error"),
    "gateway says not connected": failing(failureRate=0.5, failureKind="not_connected"),
    "gateway accepts and times out": failing(failureRate=0.3, failureKind="timeout_after_accept"),
    "gateway accepts and drops": failing(failureRate=0.4, failureKind="drop_after_accept"),
    "gateway answers late": failing(answerLatency=1.5),
    "gateway refuses": failing(failureRate=0.3, failureKind="refuse"),
    "WhatsApp drops phones": harms.phones_dropped,
}
"""What can go wrong with either database."""

ON_SQLITE: dict[str, Fault] = {"disk full": harms.flagged("full")}
ON_POSTGRES: dict[str, Fault] = {
    "database killed": harms.database_killed,
    "database connections cut": _proxied("database_proxy", lambda proxy: proxy.cut()),
    "database connections half cut": _proxied("database_proxy", lambda proxy: proxy.cut_clients()),
    "database in a black hole": _proxied("database_proxy", lambda proxy: proxy.lose()),
    "database slow": _proxied("database_proxy", lambda proxy: proxy.slow(0.05)),
}

MAY_FAIL: dict[str, dict[str, float]] = {
    "gateway answers 500": {"outcome_unknown": 0.1},
    "gateway accepts and times out": {"outcome_unknown": 0.1},
    "gateway accepts and drops": {"outcome_unknown": 0.1},
    "gateway refuses": {"refused": 0.5},
}
"""The share of messages to send that each may fail, by error code; everything else fails none."""
