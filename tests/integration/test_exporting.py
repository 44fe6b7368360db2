"""A collector that is away, slow or silent costs the service nothing but the traces."""

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.servers import REPOSITORY
from tests.system import SECONDS, NewSystem, eventually


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_silent_collector_stops_nothing(new_system: NewSystem, black_hole: str) -> None:
    """Messages go through as ever, and every process ends with 0."""
    settings = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
    pace = {"SEND_RATE": "1000", "SEND_BURST": "1000"}
    async with new_system(OTEL_EXPORTER_OTLP_ENDPOINT=black_hole, **settings, **pace) as system:
        chatbot_id, session_id = await system.connect()
        for number in range(30):
            answer = await system.post("/send", chatbotId=str(chatbot_id), to="5491112345678", message=str(number))
            assert answer.status_code == 202
        sent = await eventually(lambda: system.sent(session_id), lambda found: len(found) == 30)
        assert [message["message"] for message in sent] == [str(number) for number in range(30)]
        traced = [process for process in system.processes if process.name not in {"migrate", "simulator"}]
        assert [await process.stop() for process in traced] == [0, 0, 0, 0]


@pytest.mark.parametrize("answers", ["nothing", "never"])
async def test_the_end_waits_for_a_collector_only_briefly(black_hole: str, answers: str) -> None:
    """What is left is given up after 3 s, where nobody listens and where somebody does and says nothing."""
    program = """
        import sys, time
        from opentelemetry.trace import SpanKind
        from service import exporting, tracing
        exporting.start("ingress", sys.argv[1])
        for _ in range(5000):
            with tracing.root("GET /", SpanKind.SERVER, dict, None):
                pass
        began = time.monotonic()
        exporting.stop()
        print(time.monotonic() - began)
    """
    nobody = "http://127.0.0.1:9"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(program),
        black_hole if answers == "never" else nobody,
        # So many batches that giving up each of them after its time-out takes minutes.
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    assert float(out) < SECONDS, "by itself the SDK takes minutes"


def test_without_the_extra_the_setting_is_an_error() -> None:
    """One sentence that says what to install, and exit status 2; without the setting nothing is missed."""
    program = """
        import sys
        sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
        from service import cli
        sys.argv = ["whatsapp-qr", "ingress"]
        cli.main()
    """
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("whatsapp-qr: OTEL_EXPORTER_OTLP_ENDPOINT is set")
    assert "pip install 'whatsapp-qr[otlp]'" in ended.stderr


def test_nothing_of_the_sdk_is_imported_without_the_setting() -> None:
    """A process without a collector does not need the extra."""
    program = """
        import sys
        from service import apps, cli, exporting, gateway, metrics, tracing
        from service.settings import Settings
        exporting.start("outbound-consumer", None)
        apps.outbound_consumer_app(Settings())
        assert 'role="outbound-consumer"' in metrics.exposition().decode()
        print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.strip() == "[]", ended.stderr
