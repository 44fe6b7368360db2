"""What loads need, and what breaks first, as the capacity page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.model import IDLE, ROLES, Assumed, Limit, Load, costs_of, net_ms, plan, rates
from tests.bench.table import rows

SCALES = (1, 100, 10_000)
_LEAST_MS = 0.05
_MIXED = ("inbound", "send", "receipt")


def carried(found: Mapping[str, Any], assumed: Assumed | None = None) -> str:
    """Return what one replica of each process carries, as Markdown: of each item, and at the base load."""
    assumed = assumed or Assumed()
    costs, base = costs_of(found), Load()
    made = plan(found, base, assumed)
    lines = []
    for role, process in ROLES.items():
        for item in rates(base, found["loads"]["sessions"], assumed):
            ms = net_ms(costs[item], costs[IDLE], process)
            if ms >= _LEAST_MS and item not in {"reconciler", "sweeper"}:
                lines.append((f"{role}: {item}", f"{ms:.2g}", f"{assumed.busy * 1000 / ms:.0f}"))
        sessions = base.sessions * assumed.busy / made.cores[role]
        lines.append((f"**{role}: sessions at the base load**", "", f"**{_short(sessions)}**"))
    return rows(("item", "CPU ms", f"per s at {assumed.busy:.0%} of a core"), lines)


def checked(found: Mapping[str, Any]) -> float:
    """Return what a customer's message, a send and a receipt at once cost, in times of what the model says."""
    costs, mixed = costs_of(found), found["table"]["postgres"]["mixed"]
    expected = sum(sum(costs[item]["cpu_ms"].values()) for item in _MIXED)
    return float(sum(mixed["cpu_ms"].values()) / expected)


def scales(found: Mapping[str, Any], base: Load | None = None, assumed: Assumed | None = None) -> str:
    """Return what each scale needs, and what breaks first there, as Markdown."""
    base, assumed = base or Load(), assumed or Assumed()
    plans = {scale: plan(found, base.times(scale), assumed) for scale in SCALES}
    needs = rows(
        ("needed in the busiest hour", *(f"{_spaced(scale)} x" for scale in SCALES)),
        ((name, *(value(one) for one in plans.values())) for name, value in _NEEDS.items()),
    )
    first = [
        f"**At {_spaced(scale)} times** ({_spaced(one.load.sessions)} sessions):\n\n{_broken(one.limits)}"
        for scale, one in plans.items()
    ]
    return "\n\n".join((needs, *first))


def _broken(limits: Sequence[Limit]) -> str:
    shown = [one for one in limits if one.ratio > 1] or limits[:2]
    head = ("nearest to its limit" if shown[0].ratio <= 1 else "breaks first", "needs", "has", "times", "what to do")
    lines = (
        (one.what, f"{_short(one.used)} {one.unit}", _short(one.of), _short(one.ratio), one.remedy) for one in shown
    )
    return rows(head, lines)


def _short(value: float) -> str:
    return _spaced(value) if value >= 10 else f"{value:.2g}"


def _spaced(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


_NEEDS: dict[str, Any] = {
    "sessions": lambda one: _short(one.load.sessions),
    "customers' messages, sends (each, per s)": lambda one: _short(one.load.received),
    **{
        f"{role}: cores (replicas)": lambda one, role=role: f"{_short(one.cores[role])} ({one.replicas[role]})"
        for role in ROLES
    },
    "PostgreSQL: cores": lambda one: _short(one.cores["postgres"]),
    "PostgreSQL: transactions per s": lambda one: _short(one.transactions),
    "PostgreSQL: connections": lambda one: _short(one.database_connections),
    "PostgreSQL: WAL, GB a day": lambda one: _short(one.wal_gb_day),
    "PostgreSQL: rows and indexes, GB a day": lambda one: _short(one.rows_gb_day),
    "RabbitMQ: cores on three nodes": lambda one: _short(one.cores["rabbitmq"]),
    "RabbitMQ: publishes per s": lambda one: _short(one.publishes),
    "RabbitMQ: disk, MB/s on three nodes": lambda one: _short(one.broker_mb_s),
    "RabbitMQ: connections": lambda one: _short(one.amqp_connections),
}
