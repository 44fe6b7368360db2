"""One trace from a customer's message to the answer and its receipts, through all processes."""

import re
from collections import Counter
from uuid import uuid4

import pytest

from tests.collector import Collector, Seen, collecting, tree
from tests.system import NewSystem, System, eventually

CUSTOMER = "5491155550101"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT_IN = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
UNPACED = {"SEND_RATE": "1000", "SEND_BURST": "1000", "OTEL_BSP_SCHEDULE_DELAY": "100"}

# Each span's name and process in the trace of a message that the echo bot answers. Transactions are of whole batches.
THE_WAY = [
    ("POST /whatsapp-qr/incoming", "ingress"),
    ("publish whatsapp-qr.gateway", "ingress"),
    ("process whatsapp-qr.conversations", "conversation-consumer"),
    ("publish whatsapp-qr.jobs", "conversation-consumer"),
    ("process whatsapp-qr.conversations", "conversation-consumer"),
    ("send message", "outbound-consumer"),
    ("POST send", "outbound-consumer"),
    ("POST /whatsapp-qr/webhook", "ingress"),
    ("process whatsapp-qr.conversations", "conversation-consumer"),
]


async def written(system: System, session_id: str, text: str = "Hola") -> None:
    await system.control(f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": text})


async def the_trace(collector: Collector, count: int) -> list[Seen]:
    """Wait until the trace that a customer's message began has so many receipts, and return its spans."""

    async def look() -> list[Seen]:
        begun = [span for span in collector.spans if span.name == "POST /whatsapp-qr/incoming"]
        return collector.of_trace(begun[0].trace_id) if begun else []

    def has_ended(spans: list[Seen]) -> bool:
        ids = {span.span_id for span in spans}
        handled = {span.parent_id for span in spans if span.kind == "consumer"}
        published = {span.span_id for span in spans if span.name == "publish whatsapp-qr.gateway"}
        webhooks = [span for span in spans if span.name == "POST /whatsapp-qr/webhook"]
        inside = {span.parent_id for span in spans if span.parent_id} <= ids
        told = [span for span in spans if span.name == "publish whatsapp-qr.events"]
        return len(webhooks) == count and published <= handled and inside and len(told) > count

    return await eventually(look, has_ended)


def follows(spans: list[Seen], way: list[tuple[str, str]]) -> bool:
    """Whether each step of the way is somewhere below the one before."""
    by_id = {span.span_id: span for span in spans}

    def above(span: Seen) -> list[tuple[str, str]]:
        steps = []
        while span:
            steps.append((span.name, span.service.removeprefix("whatsapp-qr-")))
            span = by_id.get(span.parent_id)  # type: ignore[assignment]
        return steps[::-1]

    def contains(steps: list[tuple[str, str]]) -> bool:
        remaining = iter(steps)
        return all(step in remaining for step in way)

    return any(contains(above(span)) for span in spans)


async def test_a_message_and_its_answer_are_one_trace(new_system: NewSystem) -> None:
    """From the gateway's callback to the receipts of the answer: one trace id, every span under the one it follows."""
    with collecting() as collector:
        async with new_system(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **UNPACED) as system:
            _, session_id = await system.connect()
            await system.start("echo-bot")
            await written(system, session_id)
            spans = await the_trace(collector, 2)
    assert follows(spans, THE_WAY), tree(spans)
    roots = [span for span in spans if not span.parent_id]
    assert [root.name for root in roots] == ["POST /whatsapp-qr/incoming"]
    assert not any(span.failed for span in spans)
    names = Counter(span.name for span in spans)
    assert names["POST send"] == 1
    # Received, sent, delivered, read; a receipt may overtake the answer of the send.
    assert names["publish whatsapp-qr.events"] in {3, 4}
    assert {span.service for span in spans} == {
        f"whatsapp-qr-{role}" for role in ("ingress", "conversation-consumer", "outbound-consumer")
    }


async def test_what_waits_in_a_lane_goes_on_with_its_own_trace(new_system: NewSystem) -> None:
    """Each message of a lane is sent in its own trace, which its caller may have begun."""
    with collecting() as collector:
        async with new_system(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **UNPACED) as system:
            chatbot_id, _ = await system.connect()
            await system.faults(latency=5)
            body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": "Hi"}
            first = await system.post("/send", **body)
            second = await system.http.post(f"{system.api}/send", json=body, headers=SENT_IN)
            ids = [answer.json()["messageId"] for answer in (first, second)]
            await eventually(lambda: system.message(ids[1]))
            await system.faults()  # the first is on its way all the same
            for message_id in ids:
                await eventually(lambda message_id=message_id: read(system, message_id))

            async def sends() -> list[Seen]:
                return [span for span in collector.spans if span.name == "send message"]

            found = await eventually(sends, lambda spans: len(spans) == 2)
    of = {span.attributes["whatsapp_qr.message_id"]: span for span in found}
    assert of[ids[1]].trace_id == TRACE
    assert of[ids[0]].trace_id != TRACE


async def read(system: System, message_id: str) -> bool:
    return (await system.message(message_id)).get("deliveryStatus") == "READ"


async def test_without_a_collector_the_context_is_passed_on(new_system: NewSystem) -> None:
    """What came with a call is in the headers of everything that follows from it, down to the receipt's event."""
    async with new_system(**UNPACED) as system:
        chatbot_id, _ = await system.connect()
        heard = {name: await system.hear(f"whatsapp-qr.{name}") for name in ("commands", "gateway", "events")}
        body = {"chatbotId": str(chatbot_id), "to": CUSTOMER, "message": "Hi"}
        await system.http.post(f"{system.api}/send", json=body, headers=SENT_IN)
        (command,) = await heard["commands"].arrived(1, "message.send")
        reports = await heard["gateway"].arrived(2, "gateway.receipt")
        await heard["events"].arrived(1, "message.read")
        events = [event for event in heard["events"].messages if str(event.type).startswith("message.")]
        assert command.headers["tracestate"] == SENT_IN["tracestate"]
        for message in (command, *reports, *events):
            assert message.headers["traceparent"] == SENT_IN["traceparent"], message.type


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_traceidratio"])
async def test_sampling_is_as_the_environment_says(new_system: NewSystem, sampler: str) -> None:
    """With a ratio of 0 nothing is sent but what somebody else decided to sample; switched off, nothing at all."""
    with collecting() as collector:
        sampling = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0"}
        async with new_system(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **sampling, **UNPACED) as system:
            await system.connect()
            await system.http.put(f"{system.api}/chatbots/{uuid4()}", headers=SENT_IN)
    assert {span.trace_id for span in collector.spans} == (set() if sampler == "always_off" else {TRACE})


def test_the_tree_shows_what_is_part_of_what() -> None:
    """Indented by depth, in the order of the beginnings."""

    def span(name: str, span_id: str, parent_id: str, start: int) -> Seen:
        at = start * 1_000_000
        return Seen(
            "whatsapp-qr-ingress", name, "server", "t", span_id, parent_id, at, at + 2_000_000, {}, (), False, ""
        )

    drawn = tree([span("b", "2", "1", 5), span("a", "1", "", 4), span("c", "3", "2", 6)])
    assert re.sub(" +", " ", drawn) == "a ingress 0 to 2 ms\n b ingress 1 to 3 ms\n c ingress 2 to 4 ms"
