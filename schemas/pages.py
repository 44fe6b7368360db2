"""The parts of pages in docs/ that are written from the code: the settings and the session's states."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic_core import PydanticUndefined

from service.domain.session import TRANSITIONS
from service.settings import Settings

_ROOT = Path(__file__).parents[1]
_DEPLOYED = ("deploy/Dockerfile", "deploy/compose", "deploy/kubernetes", "deploy/local")
# Alerts and dashboards only name settings; the others are made on one machine and not committed.
_NOT_DEPLOYED = ("deploy/kubernetes/components/monitoring", "deploy/compose/.env", "deploy/compose/secrets")


def pages() -> dict[str, str]:
    """Return the pages with their generated parts as they should be, by their paths in the repository."""
    return {path: _page(path, parts) for path, parts in _PAGES.items()}


def _page(path: str, parts: Mapping[str, Callable[[], str]]) -> str:
    text = (_ROOT / path).read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{path} has lost its marks {begin.strip()} and {end}")
        text = before + begin + part() + end + after
    return text


def set_by_deployments() -> frozenset[str]:
    """Return the settings that some file of deploy/ sets, by their fields' names."""
    words = {word for file in _deployed_files() for word in re.findall(r"\b[A-Z][A-Z_]+\b", _without_comments(file))}
    return frozenset(name for name in Settings.model_fields if name.upper() in words)


def _deployed_files() -> Iterable[Path]:
    for place in _DEPLOYED:
        path = _ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.is_file() and file.suffix != ".md" and not _is_left_out(file))


def _is_left_out(file: Path) -> bool:
    return any(file.is_relative_to(_ROOT / place) for place in _NOT_DEPLOYED)


def _without_comments(file: Path) -> str:
    return re.sub(r"(?m)(^|\s)#.*$", "", file.read_text(encoding="utf-8", errors="replace"))


def _settings() -> str:
    found = set_by_deployments()
    return _table(name for name in Settings.model_fields if name in found)


def _advanced() -> str:
    found = set_by_deployments()
    return _table(name for name in Settings.model_fields if name not in found)


def _table(names: Iterable[str]) -> str:
    rows = ["", "| variable | default | meaning |", "|---|---|---|"]
    for name in names:
        field = Settings.model_fields[name]
        default = "" if field.default in {PydanticUndefined, None, ()} else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join([*rows, "", ""])


def _states() -> str:
    arrows = [f"    {before} --> {after}: {trigger}" for (before, trigger), after in TRANSITIONS.items()]
    return "\n".join(["", "```mermaid", "stateDiagram-v2", *arrows, "```", "", ""])


_PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "docs/settings.md": {"settings": _settings, "advanced": _advanced},
    "docs/architecture.md": {"states": _states},
}
