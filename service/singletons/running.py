"""Runs singleton jobs: the process that holds a job's lease runs it; the others try to take the lease."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from service import metrics
from service.errors import DatabaseUnavailable, GatewayError, ServiceError
from service.persistence import leases
from service.persistence.database import Database
from service.privacy import shown_code
from service.tasks import end, raise_if_cancelled

log = structlog.get_logger()

LEASE_SECONDS = 30.0
_RENEWALS = 3
"""How often a lease is renewed before it would expire."""
_RELEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SingletonJob:
    """A job that one process at a time runs repeatedly.

    Args:
        name: identifies it in the lease table, the metrics and the logs.
        period: seconds from the end of a run to the beginning of the next.
        run: runs it once, or until it is cancelled: the lease is renewed meanwhile, and a run is cancelled if the lease
            is lost or the process stops. Two runs at once must do no harm: a process that cannot reach the database may
            continue for a short time while another one begins.
    """

    name: str
    period: float
    run: Callable[[], Awaitable[None]]


class SingletonJobs:
    """The singleton jobs of one process.

    Args:
        database: stores the leases.
        jobs: the jobs to run.
        seconds: how long a lease lasts; a killed holder is replaced after at most that time and a third of it.
    """

    def __init__(self, database: Database, jobs: Sequence[SingletonJob], *, seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._jobs = jobs
        self._seconds = seconds
        self._holder = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; returns at once."""
        self._tasks = [asyncio.create_task(self._host(job), name=job.name) for job in self._jobs]

    @property
    def alive(self) -> bool:
        """Whether the task of each job runs, with or without its lease."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def stop(self) -> None:
        """End every run and release the leases, so that another process can continue at once."""
        await end(self._tasks)
        for job in self._jobs:
            await self._release(job)

    async def _host(self, job: SingletonJob) -> None:
        held = metrics.SINGLETON_JOB_HELD.labels(job.name)
        held.set(0)
        while True:
            until = time.monotonic() + self._seconds
            if await self._take(job):
                held.set(1)
                log.info("singleton_job_taken", singleton_job=job.name, holder=self._holder)
                try:
                    await self._do_while_held(job, until)
                finally:
                    held.set(0)
                log.warning("singleton_job_lost", singleton_job=job.name, holder=self._holder)
            await asyncio.sleep(self._seconds / _RENEWALS)

    async def _do_while_held(self, job: SingletonJob, until: float) -> None:
        doing = asyncio.create_task(_do_again_and_again(job), name=job.name)
        try:
            while True:
                await asyncio.wait([doing], timeout=self._seconds / _RENEWALS)
                if doing.done():  # unexpected; the next holder of the lease begins anew
                    log.error(
                        "singleton_job_ended",
                        singleton_job=job.name,
                        exc_info=None if doing.cancelled() else doing.exception(),
                    )
                    return
                if time.monotonic() >= until:  # the machine was suspended: another process may have run the job since
                    return
                renewed_until = time.monotonic() + self._seconds
                answer = await self._take(job)
                if answer:
                    until = renewed_until
                # None: the database does not answer, and the lease may be ours until it expires.
                elif answer is False or time.monotonic() + self._seconds / _RENEWALS >= until:
                    return
        finally:
            await end([doing])

    async def _take(self, job: SingletonJob) -> bool | None:
        take = partial(leases.take, job=job.name, holder=self._holder, seconds=self._seconds)
        try:
            async with asyncio.timeout(self._seconds / _RENEWALS):
                return await self._database.transact(take, urgent=True)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.debug("lease_not_answered", singleton_job=job.name, reason=str(error))
            return None
        except Exception:
            log.exception("lease_not_taken", singleton_job=job.name)
            return None

    async def _release(self, job: SingletonJob) -> None:
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                release = partial(leases.release, job=job.name, holder=self._holder)
                await self._database.transact(release, urgent=True)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.info("lease_runs_out_by_itself", singleton_job=job.name, reason=str(error))


async def _do_again_and_again(job: SingletonJob) -> None:
    told = ""
    while True:
        trouble = await _do(job, told)
        if told and not trouble:
            log.info("singleton_job_works_again", singleton_job=job.name)
        told = trouble
        await asyncio.sleep(job.period)


async def _do(job: SingletonJob, told: str) -> str:
    """Run a job once; return its error, which is logged unless it is the same as before."""
    try:
        await job.run()
    except (Exception, asyncio.CancelledError) as error:  # the job is run again after any error
        raise_if_cancelled(error)
        metrics.SINGLETON_JOB_RUNS.labels(job.name, "failed").inc()
        foreseen = isinstance(error, ServiceError)
        trouble = ": ".join(filter(None, (type(error).__name__, _told(error))))
        if trouble != told:
            log.warning(
                "singleton_job_failed", singleton_job=job.name, reason=trouble, exc_info=None if foreseen else error
            )
        return trouble
    metrics.SINGLETON_JOB_RUNS.labels(job.name, "done").inc()
    return ""


def _told(error: BaseException) -> str:
    """Return the loggable text of an error: texts of the gateway and of other libraries may contain anything."""
    if isinstance(error, GatewayError):
        return shown_code(error.code)
    return error.detail if isinstance(error, ServiceError) else ""
