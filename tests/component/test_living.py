"""/livez: yes as long as the event loop turns and the tasks that consume are there, whatever else is away."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.applications import Starlette

from service import apps
from service.settings import Settings

NO_BROKER = "amqp://guest:guest@127.0.0.1:9/"
NO_DATABASE = "postgresql+asyncpg://nobody@127.0.0.1:9/nothing"
APPS: dict[str, Callable[[Settings], Starlette]] = {
    "session": apps.session_consumer_app,
    "conversation": apps.conversation_consumer_app,
    "outbound": apps.outbound_consumer_app,
}
TASKS = [
    ("session", "Subscriptions._obey", "consumer"),
    ("session", "Sharing._run", "sharing"),
    ("session", "Relay._run", "announcer"),
    ("session", "Confirmations._run", "announcer"),
    ("session", "SingletonJobs._host", "background"),
    ("outbound", "Sender._run", "background"),
]


async def livez(app: Starlette) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as http:
        return await http.get("/livez")


def task_of(coroutine: str) -> asyncio.Task[object]:
    (task, *_) = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == coroutine]
    return task


@pytest.mark.parametrize("kind", APPS)
async def test_a_consumer_lives_while_broker_and_database_are_away(kind: str) -> None:
    """An outage does not make Kubernetes restart every pod."""
    app = APPS[kind](Settings(amqp_url=NO_BROKER, database_url=NO_DATABASE))
    async with app.router.lifespan_context(app):
        answer = await livez(app)
        assert (answer.status_code, answer.json()["success"]) == (200, True)


@pytest.mark.parametrize(("kind", "coroutine", "lost"), TASKS)
async def test_a_consumer_whose_task_has_ended_does_not_live(kind: str, coroutine: str, lost: str) -> None:
    """It would never do its work again: 503 says which task it is."""
    app = APPS[kind](Settings(amqp_url=NO_BROKER, database_url=NO_DATABASE))
    async with app.router.lifespan_context(app):
        assert (await livez(app)).status_code == 200
        task = task_of(coroutine)
        task.cancel()
        await asyncio.wait([task])
        answer = await livez(app)
        assert answer.status_code == 503
        assert [name for name, is_there in answer.json()["checks"].items() if not is_there] == [lost]
