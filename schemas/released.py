"""The last release of the messages, in `released/`: what the gate compares with, and how it is renewed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.compatibility import Contract, breaks
from schemas.messages import ROUTING

RELEASED = "released"


def load(folder: Path) -> Contract:
    """Return the contract whose documents lie in a folder."""
    routing = json.loads((folder / ROUTING).read_text(encoding="utf-8"))
    return contract(
        {ROUTING: routing}
        | {
            message["schema"]: json.loads((folder / message["schema"]).read_text(encoding="utf-8"))
            for message in routing["messages"].values()
        }
    )


def contract(documents: Mapping[str, Any]) -> Contract:
    """Return the contract that documents describe."""
    routing = documents[ROUTING]
    messages = {name: (how, documents[how["schema"]]) for name, how in routing["messages"].items()}
    return Contract(routing["version"], messages)


def broken(folder: Path, documents: Mapping[str, Any]) -> list[str]:
    """Return what the documents would break for those who use the last release, one line each, and what to do."""
    try:
        last = load(folder / RELEASED)
    except OSError as error:
        return [f"the last release cannot be read: {error}\n"]
    faults = breaks(last, contract(documents))
    advice = "Keep what was released, or raise the schema_version of each of these messages."
    return [f"{line}\n" for line in [*faults, advice]] if faults else []


def release(folder: Path, documents: Mapping[str, Any]) -> list[str]:
    """Make the documents the last release; return why that is not possible."""
    target = folder / RELEASED
    texts = {name: as_json(document) for name, document in documents.items()}
    if (target / ROUTING).exists():
        if faults := broken(folder, documents):
            return faults
        if all((target / name).exists() and (target / name).read_text("utf-8") == text for name, text in texts.items()):
            return []
        if load(target).version == contract(documents).version:
            return ["what differs from the last release needs a version of its own: raise contracts/pyproject.toml\n"]
        shutil.rmtree(target)
    for name, text in texts.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8", newline="\n")
    return []


def as_json(document: Any) -> str:
    """Return a JSON document as it is committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
