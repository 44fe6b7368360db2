"""Shows one real trace: runs everything with the echo bot, lets a customer write, and draws what became of it.

python tests/bench/trace.py
"""

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.collector import Collector, Seen, collecting, tree
from tests.servers import Broker
from tests.system import eventually, running


async def drawn(collector: Collector, broker: Broker, folder: Path) -> str:
    """Return the tree of the trace that a customer's message began, once both receipts of the answer are in it."""
    database = f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}"
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    async with running(await broker.renew(), database, folder, extra=("echo-bot",), **settings) as system:
        _, session_id = await system.connect()
        await system.control(f"/sessions/{session_id}/customers", **{"from": "5491155550101", "message": "Hola"})

        async def receipts() -> list[Seen]:
            begun = [span for span in collector.spans if span.name == "POST /whatsapp-qr/incoming"]
            return [
                span
                for span in collector.spans
                if begun and span.name == "POST /whatsapp-qr/webhook" and span.trace_id == begun[0].trace_id
            ]

        seen = await eventually(receipts, lambda found: len(found) == 2)  # delivered and read
    return tree(collector.of_trace(seen[0].trace_id))


async def main() -> None:
    """Draw it."""
    broker = Broker()
    await broker.start()
    try:
        with collecting() as collector, tempfile.TemporaryDirectory() as folder:
            print(await drawn(collector, broker, Path(folder)))
    finally:
        await broker.close()


if __name__ == "__main__":
    asyncio.run(main())
