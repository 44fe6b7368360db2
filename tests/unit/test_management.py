"""What the management API lists, compared with the topology: each difference is found and has a remedy."""

import copy
from typing import Any

import httpx
import pytest

from service.errors import BrokerUnavailable
from service.messaging import topology
from service.operating import management
from service.operating.management import Found, differences
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, JOBS

PARTITIONS = 2


def as_it_should_be() -> Found:
    """What the API lists on a broker after `topology apply`, with a foreign queue that follows events."""
    rows = {"durable": True, "auto_delete": False}
    queues: list[dict[str, Any]] = [
        {"name": one.name, "arguments": dict(one.arguments), "exclusive": False, **rows}
        for one in topology.queues(PARTITIONS)
    ]
    bindings = [
        a_binding(exchange, key, queue.name)
        for queue in topology.queues(PARTITIONS)
        for exchange, keys in queue.bindings.items()
        for key in keys
    ]
    bindings += [a_binding("", queue["name"], queue["name"]) for queue in queues]
    bindings += [a_binding(EVENTS, "message.#", "billing.events"), a_binding("amq.topic", "x", "billing.events")]
    return Found([*queues, {"name": "billing.events"}], bindings)


def a_binding(source: str, key: str, destination: str, kind: str = "queue") -> dict[str, Any]:
    return {"source": source, "routing_key": key, "destination": destination, "destination_type": kind}


def changed(what: str, name: str, **properties: Any) -> Found:
    found = copy.deepcopy(as_it_should_be())
    [row] = [row for row in getattr(found, what) if row["name"] == name]
    row.update(properties)  # type: ignore[attr-defined]
    return found


def without(what: str, **properties: Any) -> Found:
    found = as_it_should_be()
    rows = [row for row in getattr(found, what) if not properties.items() <= row.items()]
    assert len(rows) < len(getattr(found, what))
    return Found(**{**vars(found), what: rows})


def with_more(what: str, row: dict[str, Any]) -> Found:
    found = as_it_should_be()
    return Found(**{**vars(found), what: [*getattr(found, what), row]})


def test_nothing_differs_where_all_is_as_it_should_be() -> None:
    """Queues of others, and what they do with events, are no business of ours."""
    assert differences(as_it_should_be(), PARTITIONS) == []


SENDS = "whatsapp-qr-send"


@pytest.mark.parametrize(
    ("found", "said", "remedy"),
    [
        (
            changed("queues", SENDS, policy="ttl", effective_policy_definition={"message-ttl": 1, "x": 2}),
            f"queue {SENDS} has a policy that sets message-ttl",
            "pattern of ttl",
        ),
        (
            without("bindings", source=COMMANDS, routing_key="message.send.1"),
            f"queue whatsapp-qr.conversations.1 is not bound to {COMMANDS} under 'message.send.1'",
            "topology apply",
        ),
        (
            with_more("bindings", a_binding(COMMANDS, "#", "somebody")),
            f"queue somebody is bound to {COMMANDS} under '#', and should not be",
            "unbind it",
        ),
        (
            with_more("bindings", a_binding(JOBS, "x", "elsewhere", "exchange")),
            f"exchange elsewhere is bound to {JOBS}",
            "unbind it",
        ),
        (
            with_more("bindings", a_binding("amq.topic", "#", "incoming-messages")),
            "queue incoming-messages is bound to amq.topic",
            "unbind it",
        ),
        (with_more("queues", {"name": f"{SENDS}.2"}), f"queue {SENDS}.2 is beyond PARTITIONS", "by hand"),
    ],
)
def test_each_difference_is_said_with_its_remedy(found: Found, said: str, remedy: str) -> None:
    """One change, one difference, and what to do about it."""
    [one] = differences(found, PARTITIONS)
    assert one.what.startswith(said)
    assert remedy in one.remedy


def test_what_is_missing_is_said_once() -> None:
    """By AMQP, which tells every user: the bindings of a queue that is missing are missing too."""
    missing = without("queues", name=f"{SENDS}.1")
    found = Found(missing.queues, [one for one in missing.bindings if one["destination"] != f"{SENDS}.1"])
    assert differences(found, PARTITIONS) == []


def test_a_harmless_policy_is_left_alone() -> None:
    """Where a queue's leader sits is the operators' business."""
    harmless = changed("queues", SENDS, policy="x", effective_policy_definition={"queue-leader-locator": "balanced"})
    assert differences(harmless, PARTITIONS) == []


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[httpx.Request]:
    """Let the API answer so; return what it is asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(**answer)

    client = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **options: client(transport=httpx.MockTransport(handle), **options)
    )
    return asked


@pytest.mark.parametrize(
    ("amqp_url", "path"),
    [("amqp://h", "%2F"), ("amqp://h/", "%2F"), ("amqp://h/%2F", "%2F"), ("amqp://u:p@h/a%2Fb?x=y", "a%2Fb")],
)
async def test_the_virtual_host_of_the_amqp_url_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str, path: str
) -> None:
    """With the user and the password that MANAGEMENT_URL names."""
    asked = answering(monkeypatch, {"status_code": 200, "json": []})
    assert await management.look("http://user:word@host:15672", amqp_url) == Found([], [])
    kinds = ("queues", "bindings")
    assert [request.url.raw_path.decode() for request in asked] == [f"/api/{kind}/{path}" for kind in kinds]
    assert {request.headers["Authorization"] for request in asked} == {"Basic dXNlcjp3b3Jk"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status_code": 401}, "it answers 401; its user needs the tag"),
        ({"status_code": 200, "text": "<html>"}, "JSONDecodeError"),
        (httpx.ConnectError("no"), "ConnectError"),
    ],
)
async def test_an_api_that_does_not_tell_is_said_so(monkeypatch: pytest.MonkeyPatch, answer: Any, said: str) -> None:
    """No traceback, and no password in the sentence."""
    answering(monkeypatch, answer)
    with pytest.raises(BrokerUnavailable, match=said) as caught:
        await management.look("http://user:marked-word@host:15672", "amqp://h/")
    assert "marked-word" not in caught.value.detail
