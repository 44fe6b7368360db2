"""The REST interface as its own document describes it: Schemathesis asks the running service what nobody thought of."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.documented import PUBLISHED, linked, sent
from tests.system import NewSystem, System

SECONDS = 600
EXAMPLES = 15
CALLBACKS, STREAMS = "Gateway callbacks", "Streams"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
)
KEY, TOKEN = "k" * 48, "t" * 48


@pytest.fixture(scope="module")
async def system(new_system: NewSystem) -> AsyncIterator[System]:
    """The whole service, asking for keys, with what the document's examples name: so that not every answer is a 404."""
    async with new_system(API_KEYS=KEY, WEBHOOK_TOKEN=TOKEN) as system:
        await linked(system)
        await sent(system)
        yield system


# Callbacks come last: each that contradicts the gateway is settled with it within 4 s, and calls wait for their turn.
@pytest.mark.parametrize(
    ("which", "key"), [("--exclude-tag", KEY), ("--include-tag", TOKEN)], ids=["calls", "callbacks"]
)
async def test_every_answer_is_as_documented(system: System, tmp_path: Path, which: str, key: str) -> None:
    """Valid and invalid requests, alone and in sequences, with and without a key.

    No 5xx, no status, header or body that is not described, and nothing without a key.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", which, CALLBACKS, "--mode", "all"]
    command += [f"http://127.0.0.1:{system.ingress_port}/openapi.json", "--checks", ",".join(CHECKS)]
    command += ["--max-examples", str(EXAMPLES), "--generation-deterministic", "--request-timeout", "60"]
    command += ["--header", f"Authorization: Bearer {key}"]
    command += ["--exclude-tag", STREAMS]  # which have no end: see test_streams
    for _ in range(3):
        status, told = await _run(command, tmp_path)
        if status == 0 or "[503]" not in told:  # which a machine that stands still answers, as documented
            break
    assert status == 0, told
    tags = [operation["tags"] for path in PUBLISHED.openapi["paths"].values() for operation in path.values()]
    count = sum((CALLBACKS in of_one) is (which == "--include-tag") and STREAMS not in of_one for of_one in tags)
    assert f"Operations:       {count} selected / {len(tags)} total" in told


async def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command; return its exit status and its report."""
    report = folder / "report.txt"
    with report.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=os.environ | {"NO_COLOR": "1"}, stdout=output, stderr=output
        )
        try:
            status = await asyncio.wait_for(process.wait(), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
    return status, report.read_text()
