"""Panels and dashboards as values, and how they become Grafana's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common as commons
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

Unit = Literal["short", "s", "cps", "reqps", "percentunit", "bytes"]

TAG = "whatsapp-qr"
_WIDTH_OF_STAT, _HEIGHT_OF_STAT = 4, 4
_WIDTH, _HEIGHT = 8, 8
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: what it shows.
        description: what it says about users, and what is normal.
        unit: of all its values.
        queries: expressions with the legend of their series.
        bad_from: a number of this size is shown in red.
        number: show the present value, and not its course.
    """

    title: str
    description: str
    unit: Unit
    queries: Sequence[tuple[str, str]]
    bad_from: float | None = None
    number: bool = False


@dataclass(frozen=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """A dashboard.

    Args:
        name: of its file; with `whatsapp-qr-` before it, its address in Grafana.
        namespaces: the metric whose namespaces can be chosen from.
    """

    name: str
    title: str
    description: str
    namespaces: str
    rows: Sequence[Row]


def built(board: Board) -> Dashboard:
    """Return a dashboard as Grafana reads it."""
    builder = (
        grafana.Dashboard(board.title)
        .uid(f"{TAG}-{board.name}")
        .description(board.description)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_namespace(board.namespaces))
        .link(
            grafana.DashboardLink("WhatsApp QR")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=True)
            .keep_time(keep_time=True)
            .include_vars(include_vars=True)
        )
    )
    numbers = itertools.count(1)
    for row in board.rows:
        builder = builder.with_row(grafana.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder = builder.with_panel(_panel(panel).id(next(numbers)))
    return builder.build()


def _namespace(metric: str) -> grafana.QueryVariable:
    # Outside Kubernetes nothing has a namespace: `.*` matches that too, where a list of all would not.
    return (
        grafana.QueryVariable("namespace")
        .label("Namespace")
        .datasource(_SOURCE)
        .query(f"label_values({metric}, namespace)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    return _number(panel) if panel.number else _course(panel)


def _number(panel: Panel) -> stat.Panel:
    steps = [Threshold(color="green", value=None)]
    if panel.bad_from is not None:
        steps.append(Threshold(color="red", value=panel.bad_from))
    builder = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_SOURCE)
        .span(_WIDTH_OF_STAT)
        .height(_HEIGHT_OF_STAT)
        .thresholds(grafana.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    )
    for target in _targets(panel):
        builder = builder.with_target(target)
    return builder


def _course(panel: Panel) -> timeseries.Panel:
    builder = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(_SOURCE)
        .span(_WIDTH)
        .height(_HEIGHT)
        .min(0)
        .fill_opacity(10)
        .tooltip(commons.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(
            commons.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
    )
    for target in _targets(panel):
        builder = builder.with_target(target)
    return builder


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    targets = []
    for letter, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend)
        targets.append(query.instant() if panel.number else query.range())
    return targets
