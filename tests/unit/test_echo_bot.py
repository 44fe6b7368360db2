"""The echo bot is an example: short, and made of what every AI worker has."""

import ast
import sys

from tests.system import ECHO_BOT

ALLOWED = {*sys.stdlib_module_names, "whatsapp_qr_contracts", "pydantic", "aio_pika"}


def test_the_echo_bot_is_short() -> None:
    """It has under 60 lines, all told."""
    assert len(ECHO_BOT.read_text().splitlines()) < 60


def test_the_echo_bot_needs_only_the_contracts_and_an_amqp_client() -> None:
    """It imports nothing of the service and no library but aio-pika and pydantic."""
    imported = set()
    for node in ast.walk(ast.parse(ECHO_BOT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or ".").partition(".")[0])
    assert {"whatsapp_qr_contracts", "aio_pika"} <= imported
    assert imported <= ALLOWED
