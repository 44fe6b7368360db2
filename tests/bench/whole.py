"""The whole path of a message through all processes: what it costs, how many go through, and how long one takes."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.calling import percentiles, post_all, post_at
from tests.bench.deployment import AT_ONCE, Deployment, Make
from tests.bench.measuring import Cost, cost
from tests.system import eventually
from whatsapp_qr_contracts.events import (
    MessageDelivered,
    MessageReceived,
    MessageSent,
    SessionConnected,
    SessionDisconnected,
    SessionQrReady,
)
from whatsapp_qr_contracts.jobs import IncomingJob

_WARM_SECONDS = 2
_SETTLE_SECONDS = 0.5
_PATIENCE = 600.0


@dataclass(frozen=True)
class Path:
    """What is posted, and what follows from each: jobs for the workers, events."""

    make: Make
    follows: tuple[str, ...]
    handled: str = ""
    """The message that a consumer handles for each, if no event follows from each."""


def inbound(deployment: Deployment, sessions: Sequence[str] | None = None) -> Path:
    """A customer writes: a row, a job that a worker takes, an event."""
    return Path(deployment.incoming(sessions), (IncomingJob.name, MessageReceived.name))


def send(deployment: Deployment, chatbots: Sequence[str] | None = None) -> Path:
    """A chatbot sends: SENT, and its event."""
    return Path(deployment.send(chatbots), (MessageSent.name,))


def webhook(deployment: Deployment) -> Path:
    """The gateway shows a new QR code: a row, an event."""
    return Path(deployment.qr(), (SessionQrReady.name,))


def webhook_flood(deployment: Deployment) -> Path:
    """The same where the relay may fall behind: it leaves out the event of a code that a newer one has replaced."""
    return Path(deployment.qr(), (), handled="gateway.qr")


def receipt(deployment: Deployment) -> Path:
    """WhatsApp delivers what was sent: a status, an event."""
    return Path(deployment.receipt(), (MessageDelivered.name,))


def dropped(deployment: Deployment) -> Path:
    """A session loses its connection, and the gateway says so too."""
    return Path(deployment.lifeline("disconnected"), (SessionDisconnected.name,))


def found_again(deployment: Deployment) -> Path:
    """A session finds its connection again."""
    return Path(deployment.lifeline("connected"), (SessionConnected.name,))


async def run(deployment: Deployment, path: Path, count: int, *, at_once: int = AT_ONCE) -> Cost:
    """Return what each of so many messages costs on its whole path, all processes together."""
    expected = {name: deployment.reader.counts[name] + count for name in path.follows}
    handled = await deployment.handled(path.handled) + count if path.handled else 0
    before, first = await deployment.transactions(), await deployment.meter.read()
    await post_all(deployment.system.api, path.make, count, at_once)
    await deployment.reader.until(expected)
    if path.handled:
        await eventually(lambda: deployment.handled(path.handled), lambda done: done >= handled, seconds=_PATIENCE)
    ended = time.monotonic()
    await asyncio.sleep(_SETTLE_SECONDS)  # what is confirmed is written down a little later
    last = await deployment.meter.read()
    counts = {name: (value - before[name]) / count for name, value in (await deployment.transactions()).items()}
    return cost(first, last, count, seconds=ended - first.at, **counts)


async def mixed(deployment: Deployment, count: int) -> Cost:
    """Return what a customer's message, a send and a receipt cost together, all under way at once."""
    some = inbound(deployment), send(deployment), receipt(deployment)
    first = await deployment.meter.read()
    await asyncio.gather(*(run(deployment, path, count) for path in some))
    return cost(first, await deployment.meter.read(), count)


async def latencies(
    deployment: Deployment, incoming: Path, outgoing: Path, rate: int, count: int
) -> dict[str, dict[str, float]]:
    """Return p50 and p99, at so many a second, of a customer's message to its worker and of a send to the gateway."""
    found = {}
    for name, path, place in (("inbound", incoming, deployment.reader), ("send", outgoing, deployment.gateway)):
        for notes, posts in ((False, rate * _WARM_SECONDS), (True, count)):
            deployment.posted.clear()
            place.notes = notes
            expected = {event: deployment.reader.counts[event] + posts for event in path.follows}
            await post_at(deployment.system.api, path.make, posts, rate)
            await deployment.reader.until(expected)
        place.notes = False
        found[name] = percentiles([place.taken[number] - at for number, at in deployment.posted.items()])
        place.taken.clear()
    return found
