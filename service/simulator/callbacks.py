"""Callbacks to the ingress: in order for each session, retried until they are accepted."""

import asyncio
import time
from itertools import count

import httpx
import structlog

from service.simulator.signing import Credentials
from service.simulator.store import Callback, Store
from service.tasks import end

ATTEMPT_SECONDS = 5.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_DOUBLINGS = 5  # 0.2 s doubled five times is above the longest pause

_log = structlog.get_logger(__name__)


def pause_after(attempt: int) -> float:
    """Return the seconds to wait after the given failed attempt (the first is 1): 0.2 s, doubled, at most 5 s."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt - 1, _DOUBLINGS))


class CallbackLanes:
    """Posts the stored callbacks, for each session one after another: each only after the previous one was accepted.

    A callback that gets a 4xx answer will never be accepted: it is dropped with a warning. After any other failure it
    is retried.
    """

    def __init__(self, store: Store, client: httpx.AsyncClient, callback_url: str, credentials: Credentials) -> None:
        self._store = store
        self._client = client
        self._credentials = credentials
        self._base = callback_url.rstrip("/")
        self._lanes: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Continue with the callbacks that waited when the process ended."""
        for session_id in self._store.waiting_callbacks():
            self.wake(session_id)

    async def stop(self) -> None:
        """Stop posting; callbacks that were not accepted stay stored."""
        await end(self._tasks)

    def wake(self, session_id: str) -> None:
        """Wake a session's task, because a callback was stored."""
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = asyncio.Event()
            task = asyncio.create_task(self._run(session_id, lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        lane.set()

    async def _run(self, session_id: str, lane: asyncio.Event) -> None:
        try:
            # There is no await between the check that none waits and the end of the task.
            while callback := self._store.next_callback(session_id):
                lane.clear()
                early = callback.due - time.time()
                if early > 0:
                    await _wait(lane, early)
                    continue
                await asyncio.gather(*(self._post_until_settled(callback) for _ in range(callback.copies)))
                self._store.remove_callback(callback)
        finally:
            del self._lanes[session_id]

    async def _post_until_settled(self, callback: Callback) -> None:
        for attempt in count(1):
            answer = await self._post(callback)
            if isinstance(answer, httpx.Response):
                if answer.is_success:
                    return
                if answer.is_client_error:
                    _log.warning(
                        "simulator.callback_dropped",
                        session_id=callback.session_id,
                        path=callback.path,
                        status=answer.status_code,
                        answer=answer.text[:500],
                    )
                    return
            _log.info(
                "simulator.callback_retry",
                session_id=callback.session_id,
                path=callback.path,
                attempt=attempt,
                answer=str(answer),
            )
            await asyncio.sleep(pause_after(attempt))

    async def _post(self, callback: Callback) -> httpx.Response | str:
        """Return the answer, or the reason why there was none."""
        headers = {"content-type": "application/json"} | self._credentials.headers(callback)
        if callback.traceparent:
            headers["traceparent"] = callback.traceparent
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                return await self._client.post(self._base + callback.path, content=callback.body, headers=headers)
        except TimeoutError:
            return f"no answer within {ATTEMPT_SECONDS:g} s"
        except httpx.HTTPError as error:
            return repr(error)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
