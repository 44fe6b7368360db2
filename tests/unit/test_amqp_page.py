"""What docs/amqp.md names is what there is. tests/integration/test_amqp_guide.py runs its programs."""

import re

import pytest

from tests.servers import REPOSITORY
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.message import COMMANDS

PAGE = REPOSITORY / "docs" / "amqp.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAMES = {message.name for message in MESSAGES}
PREFIXES = {name.partition(".")[0] for name in NAMES if "." in name}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT))))
def test_links_lead_to_files(path: str) -> None:
    """Nothing that the page links to is missing."""
    assert (PAGE.parent / path).exists()


def test_every_command_is_named() -> None:
    """So that whoever reads it knows all that can be asked for."""
    commands = {message.name for message in MESSAGES if message.exchange == COMMANDS}
    assert {name for name in commands if f"`{name}`" not in TEXT} == set()


def test_every_message_that_is_named_exists() -> None:
    """Those that are renamed or removed take their names on the page along."""
    named = {name for name in re.findall(r"\b[a-z]+\.[a-z_]+\b", TEXT) if name.partition(".")[0] in PREFIXES}
    assert named
    assert named - NAMES == set()


def test_the_diagram_tells_the_way_of_an_answer() -> None:
    """GitHub draws it from the page itself."""
    [diagram] = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    assert diagram.startswith("sequenceDiagram")
    assert [name for name in ("incoming-messages", "message.send", "message.sent") if name not in diagram] == []
