"""The supervisor of a run: starts again what has ended, as that of `make run` and Kubernetes do."""

import asyncio
import signal
from collections import defaultdict
from collections.abc import Sequence

from tests.system import Process

KILLED = -signal.SIGKILL


class Supervisor:
    """Keeps processes running, and remembers how each ended.

    Args:
        processes: those that it keeps; the sequence may grow meanwhile.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._resting: set[Process] = set()
        self._told: set[Process] = set()
        self._keeping: asyncio.Task[None] | None = None
        self.ended: dict[str, list[int]] = defaultdict(list)
        """Exit statuses by name, noted once the process has been started again."""
        self.unexpected: list[str] = []
        """Processes that ended without having been killed, or badly when told to."""

    def start(self) -> None:
        """Begin to look after them."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Look after them no more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            for process in self._processes:
                if process.name == "migrate" or process in self._resting or process.alive:
                    continue
                status = await process.ended()
                if status != KILLED and process not in self._told:
                    self._note(process, status)
                self._told.discard(process)
                await process.start()
                self.ended[process.name].append(status)
            await asyncio.sleep(0.02)

    def _note(self, process: Process, status: int) -> None:
        self.unexpected.append(f"{process.name} ended with {status}: {process.log()[-500:]}")

    def rests(self, process: Process) -> bool:
        """Say whether a process is ended on purpose."""
        return process in self._resting

    async def terminate(self, process: Process) -> None:
        """End a process as a deployment does, and leave it ended."""
        self._resting.add(process)
        self._told.add(process)
        status = await process.stop()
        # Something else may have killed it first, or it was told before it had begun to listen to signals.
        if status not in {0, KILLED, -signal.SIGTERM}:
            self._note(process, status)

    def resume(self, process: Process) -> None:
        """Start a process again that was told to end."""
        self._resting.discard(process)
