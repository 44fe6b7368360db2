"""Sharing ends when it is told to, whatever changes at that moment."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service import tasks
from service.consumers.sharing import Sharing
from service.ending import Ending
from tests.system import SECONDS


async def nothing() -> None:
    """Stands for the heartbeat row that is removed."""


async def test_stop_is_heard_while_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that comes together with a change is not lost in it."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 600)  # or the next one would end it
    subscriptions: Any = SimpleNamespace(changed=asyncio.Event(), consuming=False, active=[], owned={}, partitions=[])
    heartbeats: Any = SimpleNamespace(remove=nothing, stand_by=nothing)
    sharing = Sharing(subscriptions, heartbeats, Ending(), process_id="a", queue="q", period=60)
    sharing.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # now it waits for a change
    subscriptions.changed.set()
    async with asyncio.timeout(SECONDS):
        await sharing.stop()
