"""Checks that what is measured is as durable as promised: nothing else would be worth measuring."""

from pathlib import Path

import psutil
from sqlalchemy import text

from service.persistence.engines import WRITE, sqlite_engine
from tests.bench.deployment import Deployment

_IN_MEMORY = {"tmpfs", "ramfs"}


async def check_durable(deployment: Deployment) -> None:
    """Check that data is on a disk and synced, that messages are persistent, and that each publish is confirmed."""
    url = deployment.system.database_url
    if deployment.postgres is not None:
        import asyncpg  # noqa: PLC0415

        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        settings = [await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")]
        assert settings == ["on", "on"], settings
        await connection.close()
    else:
        engine = sqlite_engine(url, WRITE, pool_size=1)
        async with engine.connect() as reading:
            assert (await reading.execute(text("PRAGMA synchronous"))).scalar() == 2, "SQLite does not sync"  # FULL
        await engine.dispose()
    for server in filter(None, (deployment.broker, deployment.postgres)):
        folder = getattr(server._server, "folder", None)
        assert folder is None or _file_system(folder) not in _IN_MEMORY, f"{folder} is in memory"
    assert _file_system(deployment.system.folder) not in _IN_MEMORY, f"{deployment.system.folder} is in memory"
    channels = (
        await deployment.broker.ctl("list_channels", "-p", url_vhost(deployment.system.amqp_url), "user", "confirm")
    ).splitlines()
    states = [line.split()[-1] for line in channels if line.startswith("guest")]
    assert states, "there is no channel"
    assert set(states) == {"true"}, f"not all channels confirm: {states}"
    assert deployment.reader.transient == 0, "a job was not persistent"


def url_vhost(url: str) -> str:
    """Return the virtual host of a broker's URL."""
    return url.rpartition("/")[2]


def _file_system(folder: Path) -> str:
    device = folder.stat().st_dev
    return next(
        (part.fstype for part in psutil.disk_partitions(all=True) if Path(part.mountpoint).stat().st_dev == device), ""
    )
