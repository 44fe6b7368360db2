"""A caller that costs little: keep-alive connections, one request at a time on each; it says how long answers took."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

Request = tuple[str, dict[str, Any]]
"""A path and the body that is posted to it."""


async def post_all(base: str, make: Callable[[int], Request], count: int, at_once: int) -> list[float]:
    """Post `count` requests over so many connections; return the seconds that each answer took.

    What is answered 503 is posted again, as callers should; the time until the success counts.

    Raises:
        RuntimeError: another answer was no success.
    """
    url = urlsplit(base)
    numbers, took = iter(range(count)), list[float]()

    async def one_after_another() -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        for number in numbers:
            path, body = make(number)
            began = time.perf_counter()
            while not await _is_taken(reader, writer, url.path + path, body):
                pass
            took.append(time.perf_counter() - began)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one_after_another() for _ in range(min(at_once, count))))
    return took


async def post_at(base: str, make: Callable[[int], Request], count: int, rate: float) -> None:
    """Post so many requests a second over as many connections as that takes, whether earlier ones are answered or not.

    Raises:
        RuntimeError: an answer was no success.
    """
    url, idle, tasks = urlsplit(base), [], set[asyncio.Task[None]]()

    async def one(path: str, body: dict[str, Any]) -> None:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(url.hostname, url.port)
        while not await _is_taken(reader, writer, url.path + path, body):
            pass
        idle.append((reader, writer))

    began = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.add(asyncio.create_task(one(*make(number))))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()


async def _is_taken(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]
) -> bool:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + content)
    answer = await reader.readuntil(b"\r\n\r\n")
    status, *lines = answer.decode().lower().split("\r\n")
    sizes = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
    text = await reader.readexactly(sizes[0])
    code = status.split()[1]
    if not code.startswith("2") and code != "503":
        raise RuntimeError(f"{path}: {status} {text.decode()}")
    return code != "503"


def percentiles(took: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49] * 1000, "p99": cuts[98] * 1000}
