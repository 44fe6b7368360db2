"""From what one item costs to what a load needs: processes, servers, connections, disks, and what breaks first.

Pure: what was measured comes in as docs/capacity.json has it, what is assumed stands in `Assumed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

ROLES = {
    "ingress": "ingress",
    "session": "session-consumer",
    "conversation": "conversation-consumer",
    "outbound": "outbound-consumer",
}
_DAY = 86_400


@dataclass(frozen=True)
class Load:
    """The busiest hour of a platform."""

    sessions: float = 100
    received: float = 100 / 60
    """Customers' messages per second: here one per session and minute."""
    sent: float = 100 / 60
    """Messages to send per second, all by REST."""
    receipts: float = 2
    """Receipts per message that was sent."""
    flaps: float = 1 / 3600
    """How often per second a session loses its connection and finds it again."""
    pairings: float = 0.01 / 3600
    """New links per session and second."""
    peak_share: float = 0.1
    """Of a day's messages, those of the busiest hour."""

    def times(self, factor: float) -> "Load":
        """Return the same platform with so many times the sessions."""
        share = (self.receipts, self.flaps, self.pairings, self.peak_share)
        return Load(self.sessions * factor, self.received * factor, self.sent * factor, *share)


@dataclass(frozen=True)
class Assumed:
    """What was not measured: settings, sizes of servers, and the rules by which these are planned."""

    partitions: int = 4
    calls: int = 256
    pool: int = 8
    max_connections: int = 250
    busy: float = 0.6
    """Share of a core, or of a server, that is planned for."""
    gateway_seconds: float = 0.3
    """One send, with WhatsApp's own acknowledgement."""
    gateway_mb: float = 130
    session_mb: float = 1.3
    gateway_memory_mb: float = 4096
    copies: int = 3
    """RabbitMQ nodes that write each message, as if a follower worked as hard as a leader."""
    broker_cores: float = 3 * 8
    database_cores: float = 16
    commits: float = 10_000
    """Per second, of one PostgreSQL on local NVMe with a synchronous stand-by."""
    queue_rate: float = 10_000
    """Messages per second through one quorum queue, which is one Erlang process."""
    reconcile_seconds: float = 60
    sweep_seconds: float = 30


@dataclass(frozen=True)
class Limit:
    """Something that there is only so much of."""

    what: str
    used: float
    of: float
    unit: str
    remedy: str

    @property
    def ratio(self) -> float:
        """Above 1 it is not enough."""
        return self.used / self.of


@dataclass(frozen=True)
class Plan:
    """What a load needs."""

    load: Load
    cores: dict[str, float]
    """CPU by role and server; the broker's on all nodes."""
    replicas: dict[str, int]
    publishes: float
    transactions: float
    amqp_connections: int
    database_connections: int
    wal_gb_day: float
    rows_gb_day: float
    broker_mb_s: float
    reconcile_cpu_seconds: float
    limits: list[Limit]
    """What is nearest to its end comes first."""


IDLE = "idle, one second"


def costs_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each item costs, all processes together, of everything that was measured with PostgreSQL."""
    paths = found["table"]["postgres"]["paths"]
    return {name: one["cost"] for name, one in paths.items()} | found["loads"]["costs"]


def rates(load: Load, sessions_measured: int, assumed: Assumed) -> dict[str, float]:
    """Return how often per second each measured item happens."""
    flaps, share = load.sessions * load.flaps, load.sessions / sessions_measured
    return {
        "inbound": load.received,
        "send": load.sent,
        "receipt": load.sent * load.receipts,
        "dropped": flaps,
        "found again": flaps,
        "pairing": load.sessions * load.pairings,
        "reconciler": share / assumed.reconcile_seconds,
        "sweeper": share / assumed.sweep_seconds,
    }


def net_ms(one: Mapping[str, Any], idle: Mapping[str, Any], part: str) -> float:
    """Return the CPU of a part per item, without what the part does with nothing to do."""
    return max(0.0, float(one["cpu_ms"].get(part, 0.0)) - float(idle["cpu_ms"].get(part, 0.0)) / one["per_second"])


def plan(found: Mapping[str, Any], load: Load, assumed: Assumed) -> Plan:
    """Return what a load needs, from what was measured."""
    costs, sessions_measured = costs_of(found), found["loads"]["sessions"]
    idle, often = costs[IDLE], rates(load, sessions_measured, assumed)

    def total(value: Any) -> float:
        return sum(rate * value(costs[item]) for item, rate in often.items())

    def busy(part: str) -> float:
        return total(lambda one: net_ms(one, idle, part)) / 1000

    cores = {role: busy(process) for role, process in ROLES.items()}
    cores["postgres"] = busy("postgres")
    cores["rabbitmq"] = assumed.copies * busy("rabbitmq")
    replicas = {role: max(2, ceil(cores[role] / assumed.busy)) for role in ROLES}
    processes = sum(replicas.values())
    consumers = processes - replicas["ingress"]
    needed = max(assumed.partitions, *(replicas[role] for role in ROLES if role != "ingress"))
    daily = _DAY / 24 / load.peak_share  # so many seconds of the busiest hour make a day
    row_bytes = found["loads"]["rows"]["messages"]
    reconciling = costs["reconciler"]["cpu_ms"]["session-consumer"] / 1000
    made = Plan(
        load=load,
        cores=cores,
        replicas=replicas,
        publishes=total(lambda one: one["publishes"]),
        transactions=total(lambda one: one["reads"] + one["writes"]),
        # A consumer: each partition, its entry, and what it publishes to; each queue of send jobs is a destination.
        amqp_connections=2 * replicas["ingress"] + consumers * (needed + 5) + replicas["conversation"] * needed + 1,
        database_connections=processes * assumed.pool,
        wal_gb_day=total(lambda one: one["wal_bytes"]) * daily / 1e9,
        rows_gb_day=(load.received + load.sent) * row_bytes * daily / 1e9,
        broker_mb_s=assumed.copies * total(lambda one: one["broker_bytes"]) / 1e6,
        reconcile_cpu_seconds=reconciling * load.sessions / sessions_measured,
        limits=[],
    )
    writes = total(lambda one: one["writes"])
    made.limits.extend(sorted(_limits(made, writes, assumed), key=lambda one: -one.ratio))
    return made


def _limits(made: Plan, writes: float, assumed: Assumed) -> Sequence[Limit]:
    load, share = made.load, assumed.busy
    parallel = [
        Limit(
            f"{role} consumers at work: one per partition",
            made.cores[role],
            assumed.partitions * share,
            "cores",
            "raise PARTITIONS (docs/operations.md) and the replicas with it",
        )
        for role in ROLES
        if role != "ingress"
    ]
    return [
        *parallel,
        Limit(
            "memory of one gateway",
            assumed.gateway_mb + assumed.session_mb * load.sessions,
            assumed.gateway_memory_mb,
            "MB",
            "several gateways, and before them a router by sessionId: the service knows one URL",
        ),
        Limit(
            "calls of the gateway at once: 256 of each outbound consumer",
            load.sent * assumed.gateway_seconds,
            assumed.calls * assumed.partitions,
            "calls",
            "raise PARTITIONS, and with them the consumers",
        ),
        Limit(
            "the reconciler: one process, each RECONCILE_PERIOD",
            made.reconcile_cpu_seconds,
            assumed.reconcile_seconds * share,
            "CPU s",
            "a longer RECONCILE_PERIOD; beyond that deployments side by side",
        ),
        Limit(
            "PostgreSQL's CPU",
            made.cores["postgres"],
            assumed.database_cores * share,
            "cores",
            "a larger server; beyond that deployments side by side, each with its chatbots",
        ),
        Limit("PostgreSQL's commits", writes, assumed.commits * share, "per s", "as for its CPU"),
        Limit(
            "connections to PostgreSQL",
            made.database_connections,
            assumed.max_connections * 0.8,
            "connections",
            "a smaller DATABASE_POOL, a larger max_connections; no transaction pooler",
        ),
        Limit(
            "RabbitMQ's CPU, three nodes",
            made.cores["rabbitmq"],
            assumed.broker_cores * share,
            "cores",
            "larger nodes, then more nodes: the queues' leaders spread over them",
        ),
        Limit(
            "incoming-messages: one queue for all workers",
            load.received,
            assumed.queue_rate * share,
            "per s",
            "deployments side by side, or partitions for this queue too",
        ),
    ]
