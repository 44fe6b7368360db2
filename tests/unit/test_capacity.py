"""The capacity model: what follows from costs and a load; and the capacity page is what it calculates."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.gateway import MAX_CONNECTIONS
from service.settings import Settings
from tests.bench import comparing, needs, table
from tests.bench.calling import percentiles
from tests.bench.measuring import Reading, cost, total
from tests.bench.model import Assumed, Load, net_ms, plan, rates
from tests.servers import REPOSITORY

PAGES = [REPOSITORY / "docs" / name for name in ("capacity.md", "operations.md")]
PAGE = PAGES[0].read_text()
FOUND = json.loads((REPOSITORY / "docs" / "capacity.json").read_text())
ASSUMED = Assumed()


PATHS = {
    "inbound": ("ingress", "conversation-consumer"),
    "send": ("ingress", "conversation-consumer", "outbound-consumer"),
    "receipt": ("ingress", "conversation-consumer"),
}


def found(**changed: dict[str, Any]) -> dict[str, Any]:
    """Make up what was measured: 10 ms in each process that sees an item, RabbitMQ 2 ms, PostgreSQL 4 ms."""
    costs = {}
    for item in rates(Load(), 1000, ASSUMED):
        processes = dict.fromkeys(PATHS.get(item, ("session-consumer",)), 10.0)
        costs[item] = a_cost(processes | {"rabbitmq": 2.0, "postgres": 4.0}) | changed.get(item, {})
    costs["idle, one second"] = a_cost({}, reads=0, writes=0, publishes=0)
    paths = {name: {"cost": costs.pop(name)} for name in PATHS}
    return {
        "table": {"postgres": {"paths": paths}},
        "loads": {"sessions": 1000, "costs": costs, "rows": {"messages": 1000.0}},
    }


def a_cost(cpu_ms: dict[str, float], **changed: float) -> dict[str, Any]:
    """Make up the cost of an item."""
    counts = {"reads": 1, "writes": 2, "publishes": 1, "wal_bytes": 500, "broker_bytes": 300}
    return {"per_second": 100.0, "cpu_ms": cpu_ms} | counts | changed


QUIET = Load(sessions=10, received=0, sent=0, flaps=0, pairings=0)


def test_a_customers_message_costs_a_callback_and_its_handling() -> None:
    """60 in a second keep 0.6 of a core busy in each of the two processes that see them, and no other."""
    made = plan(found(), replace(QUIET, received=60), ASSUMED)
    assert made.cores["ingress"] == pytest.approx(0.6)
    assert made.cores["conversation"] == pytest.approx(0.6)
    assert made.cores["outbound"] == 0
    assert made.wal_gb_day == pytest.approx(60 * 500 * 36_000 / 1e9, rel=0.01)
    assert made.rows_gb_day == pytest.approx(60 * 1000 * 36_000 / 1e9)


def test_a_send_costs_all_three_and_its_receipts() -> None:
    """One call, one row, one send; each receipt is a callback and is handled."""
    made = plan(found(), replace(QUIET, sent=10, receipts=2), ASSUMED)
    assert made.cores["ingress"] == pytest.approx(0.3)
    assert made.cores["conversation"] == pytest.approx(0.3)
    assert made.cores["outbound"] == pytest.approx(0.1)


def test_what_runs_anyway_is_no_cost_of_an_item() -> None:
    """At 100 items a second each has a hundredth of what a part does with nothing to do."""
    one = a_cost({"rabbitmq": 2.0})
    assert net_ms(one, a_cost({"rabbitmq": 50.0}), "rabbitmq") == pytest.approx(1.5)
    assert net_ms(one, a_cost({"rabbitmq": 500.0}), "rabbitmq") == 0


def test_replicas_are_planned_below_their_end() -> None:
    """Two at least; more as soon as one is busier than planned for."""
    made = plan(found(), replace(QUIET, received=60 * 1.01), ASSUMED)
    assert made.replicas == {"ingress": 2, "session": 2, "conversation": 2, "outbound": 2}
    assert plan(found(), replace(QUIET, received=60 * 2.01), ASSUMED).replicas["conversation"] == 3


def test_three_nodes_write_what_one_does() -> None:
    """RabbitMQ's CPU and disk count on every node."""
    made, alone = (plan(found(), replace(QUIET, received=100), replace(ASSUMED, copies=copies)) for copies in (3, 1))
    assert made.cores["rabbitmq"] == pytest.approx(3 * alone.cores["rabbitmq"])
    assert made.broker_mb_s == pytest.approx(3 * alone.broker_mb_s)


def test_connections_follow_the_processes() -> None:
    """A pool for each process; a consumer reads each partition and its entry, and publishes to each destination."""
    made = plan(found(), QUIET, ASSUMED)
    assert made.database_connections == 8 * 8
    assert made.amqp_connections == 2 * 2 + 6 * (4 + 5) + 2 * 4 + 1


SLOW_SENDS = {"send": {"cpu_ms": {"outbound-consumer": 30.0}}}


@pytest.mark.parametrize(
    ("load", "changed", "first"),
    [
        (replace(QUIET, received=400), {}, "conversation consumers at work: one per partition"),
        (replace(QUIET, sent=100, receipts=0), SLOW_SENDS, "outbound consumers at work: one per partition"),
        (replace(QUIET, sessions=20_000), {}, "memory of one gateway"),
    ],
)
def test_what_breaks_first_depends_on_the_load(load: Load, changed: dict[str, Any], first: str) -> None:
    """The limit that is exceeded most comes first, the others behind it."""
    limits = plan(found(**changed), load, ASSUMED).limits
    assert limits[0].what == first
    assert limits[0].ratio > 1
    assert [one.ratio for one in limits] == sorted((one.ratio for one in limits), reverse=True)


def test_a_slow_gateway_fills_the_lanes() -> None:
    """3600 sends a second of 0.3 s each are 1080 calls at once, and 4 consumers make 1024."""
    limits = {one.what: one for one in plan(found(), replace(QUIET, sent=3600), ASSUMED).limits}
    calls = limits["calls of the gateway at once: 256 of each outbound consumer"]
    assert (calls.used, calls.of) == (pytest.approx(1080), 1024)


def test_more_partitions_carry_more() -> None:
    """Twice the partitions, half the share of the limit."""
    load, name = replace(QUIET, received=400), "conversation consumers at work: one per partition"
    few, many = (
        {one.what: one for one in plan(found(), load, replace(ASSUMED, partitions=count)).limits}[name].ratio
        for count in (4, 8)
    )
    assert few == pytest.approx(2 * many)


def test_the_load_grows_evenly() -> None:
    """A hundred times the platform is a hundred times the sessions and messages, each as busy as before."""
    base = Load()
    more = base.times(100)
    assert (more.sessions, more.received, more.sent) == (100 * base.sessions, 100 * base.received, 100 * base.sent)
    assert (more.flaps, more.receipts, more.peak_share) == (base.flaps, base.receipts, base.peak_share)


def test_the_settings_that_are_assumed_are_the_defaults() -> None:
    """PARTITIONS and calls at once are those of the service; the pool and connections those of deploy/kubernetes."""
    settings = Settings()
    assert (ASSUMED.partitions, ASSUMED.calls) == (settings.partitions, MAX_CONNECTIONS)
    kubernetes = REPOSITORY / "deploy" / "kubernetes"
    assert f"DATABASE_POOL={ASSUMED.pool}\n" in (kubernetes / "settings" / "settings.env").read_text()
    cluster = (kubernetes / "components" / "cnpg" / "cluster.yaml").read_text()
    assert f'max_connections: "{ASSUMED.max_connections}"' in cluster


def test_a_cost_is_what_lies_between_two_readings() -> None:
    """By item; a part that was not there at the first reading is left out."""
    first = Reading(10.0, {"ingress": 1.0}, {"writes": 5.0})
    last = Reading(12.0, {"ingress": 1.5, "rabbitmq": 9.0}, {"writes": 25.0, "publishes": 10.0})
    one = cost(first, last, 10)
    assert (one.per_second, one.cpu_ms) == (5.0, {"ingress": pytest.approx(50.0)})
    assert (one.writes, one.publishes) == (2.0, 1.0)
    assert cost(first, last, 10, seconds=1.0, reads=3).per_second == 10


def test_metrics_are_summed_by_their_labels() -> None:
    """Only samples of that name with these labels count."""
    text = '# TYPE a counter\na_total{x="1",y="1"} 2\na_total{x="1",y="2"} 3\na_total{x="2",y="1"} 7\n'
    assert total(text, "a_total", x="1") == 5


def test_waiting_times_are_in_milliseconds() -> None:
    """The middle one, and the one that a hundredth exceeds."""
    assert percentiles([number / 1000 for number in range(1, 200)]) == {
        "p50": pytest.approx(100),
        "p99": pytest.approx(198),
    }


def test_what_is_worse_than_the_baseline_is_told() -> None:
    """Over 15 % dearer or slower than it was, by path; a little worse is noise."""
    before = {"hops": [5.0, 5.1, 4.9], "rate": [0.1, 0.1, 0.1]}
    baseline = comparing.baseline_of({"postgres": {"paths": {"inbound": before}}})
    for factor, told in ((1.1, 0), (1.2, 2)):
        now = {"hops": [one * factor for one in before["hops"]], "rate": [one / factor for one in before["rate"]]}
        assert len(list(comparing.worse({"table": {"postgres": {"paths": {"inbound": now}}}}, baseline))) == told


def test_the_model_agrees_with_what_was_measured_at_once() -> None:
    """A message, a send and a receipt under way together cost what they cost one after another: within 25 %."""
    assert needs.checked(FOUND) == pytest.approx(1, abs=0.25)


def test_the_page_shows_what_was_measured_and_calculated(tmp_path: Path) -> None:
    """Whoever changes the model or measures anew writes the page anew: RECORD=1 make bench."""
    copy = tmp_path / "capacity.md"
    copy.write_text(PAGE)
    table.publish(copy, measured=table.everything(FOUND), carried=needs.carried(FOUND), model=needs.scales(FOUND))
    assert copy.read_text() == PAGE


def test_a_page_without_its_marks_is_not_written(tmp_path: Path) -> None:
    """A table that has no place is an error, not a loss."""
    page = tmp_path / "page.md"
    page.write_text("<!-- measured -->")
    with pytest.raises(ValueError, match="no place"):
        table.publish(page, measured="x")
    assert page.read_text() == "<!-- measured -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files that the pages link to exist, and tests that they name are in them."""
    links = re.findall(r"\[([^\]]+)\]\(((?!http)[^)#]+)\)", page.read_text())
    assert links
    for name, path in links:
        target = page.parent / path
        assert target.exists(), path
        if name.startswith("`test_"):
            assert f"def {name.strip('`')}(" in target.read_text(), name


def test_commands_of_the_operations_page_exist() -> None:
    """Settings and subcommands that an operator is told to type are there."""
    from typer.main import get_command  # noqa: PLC0415

    from service.cli import app  # noqa: PLC0415

    text = PAGES[1].read_text()
    known = get_command(app).commands  # type: ignore[attr-defined]
    for group, command in re.findall(r"whatsapp-qr (topology|dead-letters|messages) ([a-z]+)", text):
        assert command in known[group].commands, (group, command)
    for setting in re.findall(r"\b([A-Z]+(?:_[A-Z]+)*)=", text):
        assert setting.lower() in Settings.model_fields, setting
