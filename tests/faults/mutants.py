"""Defects that the judge must find: each is the mistake that somebody would make next, put into a running process."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from faststream.rabbit import Channel, RabbitMessage

from service.consumers.announcing import Announcer
from service.messaging import partitions, publishing
from service.messaging.partitions import Partition
from service.persistence import conversations, lanes


def install(name: str) -> None:
    """Give this process a defect."""
    MUTANTS[name]()


def _skips_duplicates() -> None:
    """Who finds that a message is stored already believes that everything has been done."""
    duplicates: set[UUID] = set()
    for name in ("store_incoming", "store_outgoing"):
        setattr(conversations, name, _noting(getattr(conversations, name), duplicates))
    for name in ("received", "ring"):
        setattr(Announcer, name, _unless(getattr(Announcer, name), duplicates))


def _noting(store: Callable[..., Any], duplicates: set[UUID]) -> Callable[..., Any]:
    async def storing(*given: Any, **named: Any) -> Any:
        stored = await store(*given, **named)
        if not stored.is_new:
            duplicates.add(stored.message.id)
        return stored

    return storing


def _unless(announce: Callable[..., Any], duplicates: set[UUID]) -> Callable[..., Any]:
    async def announcing(announcer: Announcer, message: Any, **named: Any) -> None:
        if message.id not in duplicates:
            await announce(announcer, message, **named)

    return announcing


def _acknowledges_first() -> None:
    """A message is acknowledged when it comes, not when its work is done."""
    handle = Partition._handle

    async def handling(partition: Partition, delivery: RabbitMessage) -> None:
        await delivery.ack()
        await handle(partition, delivery)

    Partition._handle = handling  # type: ignore[method-assign]


def _publishes_unconfirmed() -> None:
    """A publish is believed to have arrived once it was written to the socket."""
    publishing.Channel = lambda **_: Channel(publisher_confirms=False, on_return_raises=False)  # type: ignore[assignment,misc]


def _claims_unchecked() -> None:
    """A message that another process is sending at this moment is sent."""
    lock_first = lanes._lock_first

    async def locking(*given: Any) -> Any:
        row = await lock_first(*given)
        if row is not None:
            row[0].claimed_until = None
        return row

    lanes._lock_first = locking


def _without_order() -> None:
    """Messages of one key are worked on side by side."""
    build = Partition.__init__

    def building(partition: Partition, *given: Any, **named: Any) -> None:
        build(partition, *given, **named | {"ordered": False})

    partitions.Partition.__init__ = building  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "skips duplicates": _skips_duplicates,
    "acknowledges first": _acknowledges_first,
    "publishes unconfirmed": _publishes_unconfirmed,
    "claims unchecked": _claims_unchecked,
    "without order": _without_order,
}
