"""The parts of README.md that are written from the code: the settings and the session's states."""

from pathlib import Path

from pydantic_core import PydanticUndefined

from service.domain.session import TRANSITIONS
from service.settings import Settings

README = Path(__file__).parents[1] / "README.md"


def readme() -> str:
    """Return README.md with its generated parts as they should be."""
    text = README.read_text()
    for name, part in (("settings", _settings()), ("states", _states())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"README.md has lost its marks {begin.strip()} and {end}")
        text = before + begin + part + end + after
    return text


def _settings() -> str:
    rows = ["", "| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in {PydanticUndefined, None, ()} else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join([*rows, "", ""])


def _states() -> str:
    arrows = [f"    {before} --> {after}: {trigger}" for (before, trigger), after in TRANSITIONS.items()]
    return "\n".join(["", "```mermaid", "stateDiagram-v2", *arrows, "```", "", ""])
