"""A real browser for the tests of pages."""

import shutil
import subprocess

import pytest

from tests.servers import LOCAL


@pytest.fixture(scope="session")
def browser() -> list[str]:
    """The command of a Chromium that asks for nothing by itself; it is installed where it is missing."""
    subprocess.run([LOCAL / "setup.sh", "chromium"], check=True, timeout=900)
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    return [program, *flags, "--disable-background-networking", "--disable-component-update"]
