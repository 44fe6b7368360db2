"""A real browser for the tests of pages."""

import shutil
import subprocess

import pytest

from tests.servers import LOCAL


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium, installed where it is missing and that is possible; there is no test without it."""
    subprocess.run([LOCAL / "setup.sh", "chromium"], check=True, timeout=900)
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
