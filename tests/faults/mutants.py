"""Defects that the judge must find: each is the mistake that somebody would make next, put into a running process."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from faststream.rabbit import Channel

from service.consumers.conversation import ConversationConsumer
from service.consumers.outbound import Sender
from service.consumers.relay import Relay
from service.consumers.row_outputs import Output
from service.domain.sending import SendPolicy
from service.messaging import publishing
from service.messaging.handling import BatchProcessor, acknowledge
from service.messaging.pipelining import Pipeline
from service.persistence.intake import Intake


def install(name: str) -> None:
    """Give this process a defect."""
    MUTANTS[name]()


def _replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def _skips_duplicates() -> None:
    """Who finds that a message is stored already believes that everything has been done."""

    def skipping(receive: Callable[..., Any]) -> Callable[..., Any]:
        def receiving(consumer: ConversationConsumer, rows: Intake, *given: Any) -> Any:
            known = len(rows.messages)
            outputs = receive(consumer, rows, *given)
            return outputs if len(rows.messages) > known else []

        return receiving

    _replace(ConversationConsumer, "_receive", skipping)


def _acknowledges_first() -> None:
    """A message is acknowledged when it comes, not when its work is done."""

    def acknowledging(end: Callable[..., Any]) -> Callable[..., Any]:
        async def ending(handling: BatchProcessor, batch: Any, **how: Any) -> Any:
            await acknowledge(batch.deliveries)
            return await end(handling, batch, **how)

        return ending

    _replace(BatchProcessor, "end", acknowledging)


def _reverses_batches() -> None:
    """What waits is taken together, and the newest is handled first."""

    def reversing(end: Callable[..., Any]) -> Callable[..., Any]:
        async def ending(handling: BatchProcessor, batch: Any, **how: Any) -> Any:
            batch.readable.reverse()
            return await end(handling, batch, **how)

        return ending

    _replace(BatchProcessor, "end", reversing)


def _publishes_unconfirmed() -> None:
    """A publish is believed to have arrived once it was written to the socket."""

    async def publish(pipeline: Pipeline, body: bytes, exchange: str, routing_key: str, *given: Any, **_: Any) -> None:
        await pipeline.channel.basic_publish(
            body, exchange=exchange, routing_key=routing_key, properties=given[0], wait=False
        )

    publishing.Channel = lambda **_: Channel(publisher_confirms=False, on_return_raises=False)  # type: ignore[assignment,misc]
    _replace(Pipeline, "publish", lambda _: publish)


def _claims_too_briefly() -> None:
    """A claim ends at once: whoever looks at the lane sends the message that another process is sending."""
    SendPolicy.claim_seconds = property(lambda _policy: 0.0)  # type: ignore[assignment,method-assign]


def _forgets_due_lanes() -> None:
    """A lane is looked at when a job comes for it, and never because its time has come."""

    async def looking(_sender: Sender) -> None:
        return

    _replace(Sender, "_look_for_due", lambda _: looking)


def _forgets_at_take_over() -> None:
    """Who takes a partition over tells what comes from then on."""
    _replace(Relay, "_notice_taken_over", lambda _: lambda _relay: None)


def _overtakes() -> None:
    """What was just committed is published at once, also while something from before is left in its rows."""

    def telling(relay: Relay, outputs: Sequence[Output]) -> None:
        relay._waiting.extend(outputs)
        relay._wake.set()

    _replace(Relay, "tell", lambda _: telling)


def _publishes_side_by_side() -> None:
    """A page is published all at once, whatever its order; what is refused stops nothing."""

    async def publish(relay: Relay, outputs: Sequence[Output]) -> bool:
        relay._places = asyncio.Semaphore(len(outputs))
        relay._failed = lambda _reason: False  # type: ignore[method-assign]
        return all(await asyncio.gather(*(relay._publish_in_order([output]) for output in outputs)))

    _replace(Relay, "_publish", lambda _: publish)


def _marks_first() -> None:
    """An output counts as told when it is about to be published."""

    def marking(publish: Callable[..., Any]) -> Callable[..., Any]:
        async def publishing_one(relay: Relay, output: Output, tries: int) -> bool:
            relay._confirmations.note(output.confirmation)
            return bool(await publish(relay, output, tries))

        return publishing_one

    _replace(Relay, "_publish_one", marking)


MUTANTS: dict[str, Callable[[], None]] = {
    "skips duplicates": _skips_duplicates,
    "acknowledges first": _acknowledges_first,
    "reverses batches": _reverses_batches,
    "publishes unconfirmed": _publishes_unconfirmed,
    "claims too briefly": _claims_too_briefly,
    "forgets due lanes": _forgets_due_lanes,
    "forgets at take-over": _forgets_at_take_over,
    "overtakes": _overtakes,
    "publishes side by side": _publishes_side_by_side,
    "marks first": _marks_first,
}
