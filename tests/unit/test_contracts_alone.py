"""The contracts stand alone."""

import subprocess
import sys
from pathlib import Path

CONTRACTS = Path(__file__).parents[2] / "contracts"

IMPORT_ALL = """
import importlib, pkgutil, sys
import whatsapp_qr_contracts as contracts
for module in pkgutil.iter_modules(contracts.__path__):
    importlib.import_module(f"whatsapp_qr_contracts.{module.name}")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_contracts_need_only_pydantic() -> None:
    """Importing every module of the contracts loads neither the service nor any of its libraries but pydantic."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=CONTRACTS, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pydantic" in found
    assert not {"service", "faststream", "aio_pika", "sqlalchemy", "sqlmodel", "fastapi", "httpx"} & set(found)
