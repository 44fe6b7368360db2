"""Looks at rules, dashboards and runbook pages, and says what is wrong with them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from deploy.monitoring import generate, known
from deploy.monitoring.known import Labels, faults
from service import metrics

REPOSITORY = Path(__file__).parents[2]
MONITORING = REPOSITORY / "deploy" / "monitoring"
METRICS = REPOSITORY / "service" / "metrics.py"
PAGES = REPOSITORY / "docs" / "runbook"
DASHBOARDS = generate.COMPONENT / "dashboards"

Rules = Mapping[str, Any]

_OF_OTHERS = {
    "disk_free_limit",
    "rabbitmq_prometheus",
    "messages_ready",
    "messages_unacknowledged",
    "alembic_version",
    "cluster_status",
}
_SECTIONS = ("What it means", "How to look", "What to do", "It is over when", "What not to do")
_OUR_LABELS = {"status", "outcome", "reason", "type", "queue", "role", "call", "kind", "singleton_job", "session"}
_SEVERITIES = {"critical", "warning"}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    found = shutil.which("promtool")
    assert found, "promtool is missing: run deploy/local/setup.sh prometheus"
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False)


def alerts(rules: Rules) -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def rule_faults(rules: Rules, pages: Path) -> list[str]:
    """Return what is wrong with rules, apart from what promtool says."""
    metrics = known.known(rules)
    found = [
        fault
        for group in rules["groups"]
        for rule in group["rules"]
        for fault in (*faults(rule["expr"], metrics), *_value_faults(rule["expr"]))
    ]
    for name, alert in alerts(rules).items():
        texts = alert["annotations"]
        if alert["labels"].get("severity") not in _SEVERITIES:
            found.append(f"{name} has no severity")
        found += [f"{name} has no {text}" for text in ("summary", "description") if not texts.get(text)]
        if texts.get("runbook_url") != f"{generate.RUNBOOK}{name}.md" or not (pages / f"{name}.md").exists():
            found.append(f"{name} has no page")
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values())))
        found += [f"{name} has no label {label} to tell" for label in sorted(used - _kept(alert["expr"]))]
    return found


def _kept(expression: str) -> set[str]:
    """Return the labels that an alert has, for those that aggregate or make labels."""
    by = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    made = set(re.findall(r'"(\w+)", "[^"]*", "", ""\)', expression))
    return by | made | ({"namespace", "vhost", "queue"} if "whatsapp_qr:queue" in expression else set())


def _value_faults(expression: str) -> Iterator[str]:
    """Yield the values of our labels that no code ever gives them."""
    plain = expression.replace("$__rate_interval", "5m")
    for metric, where in re.findall(r"(whatsapp_qr_\w+)\{([^}]*)\}", plain):
        for label, value in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', where):
            for single in value.split("|"):
                if re.fullmatch(r"[\w.-]+", single) and label in _OUR_LABELS and not _is_said(single, metric, label):
                    yield f"{metric}: {label} is never {single}"


@cache
def _sources() -> str:
    files = [*(REPOSITORY / "service").rglob("*.py"), *(REPOSITORY / "contracts").rglob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _counting(metric: str) -> str:
    """Return the sources that count under a metric, and the codes that it may be given from elsewhere."""
    constants = [
        name
        for name, one in vars(metrics).items()
        if isinstance(one, MetricWrapperBase) and metric.removesuffix("_total").startswith(one._name)
    ]
    files = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "service").rglob("*.py") if file != METRICS]
    codes = " ".join(f'"{code}"' for code in metrics._SEND_CODES) if "SENDS" in constants else ""
    return codes + "\n".join(text for text in files if any(re.search(rf"\b{name}\b", text) for name in constants))


def _is_said(value: str, metric: str = "", label: str = "") -> bool:
    return f'"{value}"' in (_counting(metric) if label == "outcome" else _sources())


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the committed dashboards by the name of their file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def dashboard_faults(dashboard: Mapping[str, Any], metrics: Labels) -> list[str]:
    """Return what is wrong with a dashboard."""
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    found = [fault for panel in dashboard["panels"] for fault in _panel_faults(panel, metrics, variables)]
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        found.append("two panels have the same id")
    taken = [cell for panel in dashboard["panels"] for cell in _cells(panel["gridPos"])]
    if len(taken) != len(set(taken)):
        found.append("two panels lie on each other")
    for variable in dashboard["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("query") or "")
        if asked and asked[2] not in metrics.get(asked[1], frozenset()) | known.TARGET:
            found.append(f"{variable['name']}: there is no {asked[1]} with {asked[2]}")
        if asked and asked[1] not in metrics:
            found.append(f"{variable['name']}: there is no metric {asked[1]}")
    return found


def _panel_faults(panel: Mapping[str, Any], metrics: Labels, variables: set[str]) -> Iterator[str]:
    title = panel.get("title") or ""
    if not title:
        yield f"panel {panel['id']} has no title"
    if panel["type"] == "row":
        return
    if not panel.get("description"):
        yield f"{title} has no description"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield f"{title} has no unit"
    if panel.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
        yield f"{title} has a fixed data source"
    if not panel.get("targets"):
        yield f"{title} shows nothing"
    for target in panel.get("targets") or []:
        yield from faults(target["expr"], metrics, legend=target.get("legendFormat") or "")
        yield from _value_faults(target["expr"])
        for variable in re.findall(r"\$(\w+)", target["expr"]):
            if not variable.startswith("__") and variable not in variables:
                yield f"{title}: nobody sets ${variable}"


def _cells(place: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE).strip() for indent, block in found]


def command_lines(text: str, program: str) -> list[str]:
    """Return the command lines of a page that begin with a program."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for line in (*lines, *inline) if line.startswith(f"{program} ")]


def page_faults(name: str, text: str, metrics: Labels) -> list[str]:
    """Return what is wrong with a page of the runbook, apart from its command lines and its SQL."""
    found = [] if text.startswith(f"# {name}\n") else [f"{name} is not its title"]
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    if tuple(titles) != _SECTIONS:
        found.append(f"{name}: the sections are {titles}")
    found += [f"{name}: {title} is empty" for title in re.findall(r"^## (.+)\n+(?=## |\Z)", text, flags=re.MULTILINE)]
    if not command_lines(text, "kubectl") and not command_lines(text, "rabbitmqctl"):
        found.append(f"{name} does not say how to look")
    for line in command_lines(text, "kubectl"):
        if line.startswith("kubectl logs deploy/"):
            found.append(f"{name}: {line} shows one pod of several")
    for query in blocks(text, "promql"):
        found += faults(query, metrics)
        found += _value_faults(query)
    found += [f"{name}: {link} does not exist" for link in re.findall(r"\]\(([^)]+)\)", text) if not _leads(link)]
    words = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)
    spoken = {*metrics, *(metric.removeprefix("whatsapp_qr_") for metric in metrics), *_OF_OTHERS}
    found += [f"{name}: nobody says {word}" for word in words if word not in spoken and not _is_word(word)]
    return found


def _leads(link: str) -> bool:
    path, _, anchor = link.partition("#")
    if not (PAGES / path).exists():
        return False
    titles = re.findall(r"^#+ (.+)$", (PAGES / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return not anchor or anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def _is_word(word: str) -> bool:
    """Say whether it is a name in the code: a text, a column, or the kind of a mended session."""
    return f'"{word}"' in _sources() or f" {word}:" in _sources() or _is_said(word.removeprefix("session_"))
