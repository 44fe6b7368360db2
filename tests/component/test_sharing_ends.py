"""Sharing ends when it is told to, whatever changes at that moment."""

import asyncio
from types import SimpleNamespace
from typing import Any

from service.consumers.sharing import Sharing


async def nothing() -> None:
    """Stands for the heartbeat row that is removed."""


async def test_stop_is_heard_while_something_changes() -> None:
    """A cancellation that comes together with a change is not lost in it."""
    subscriptions: Any = SimpleNamespace(changed=asyncio.Event(), consuming=False, active=[], partitions=[])
    heartbeats: Any = SimpleNamespace(remove=nothing)
    sharing = Sharing(subscriptions, heartbeats, process_id="a", queue="q", period=60)
    sharing.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # now it waits for a change
    subscriptions.changed.set()
    async with asyncio.timeout(5):
        await sharing.stop()
