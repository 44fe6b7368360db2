"""Lost connections and broker restarts: everything comes back by itself, and nothing confirmed is lost."""

import asyncio
from functools import partial
from uuid import UUID

import pytest

from service import tasks
from service.errors import BrokerUnavailable
from service.messaging.listening import Listener
from service.messaging.publishing import Publisher
from service.messaging.retrying import RetryWhileUnavailable
from service.messaging.topology import CONVERSATIONS, DEAD_LETTERS
from tests.amqp import SECONDS, Amqp, Handler, a_chatbot, consuming, properties, publishing, send, until
from tests.proxy import Proxy
from tests.servers import Broker
from whatsapp_qr_contracts.commands import SendMessage
from whatsapp_qr_contracts.events import ChatbotRegistered, CommandRejected, ConversationStarted, SessionConnected
from whatsapp_qr_contracts.message import EVENTS, SessionStatus

QUEUE = CONVERSATIONS.name
NOW = "2026-01-01T00:00:00Z"


async def announce(publisher: Publisher, chatbot_id: UUID, cause: str) -> None:
    """Publish an event caused by the command of that id."""
    event = ChatbotRegistered(chatbot_id=chatbot_id)
    await publisher.publish(event, message_id=f"event of {cause}", correlation_id=cause)


async def test_dead_link_is_noticed(clean_broker: str) -> None:
    """Where the link dies without a word the heartbeat notices, and the message is handled over a new connection."""
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    handler = Handler(work)
    async with (
        Proxy(clean_broker) as proxy,
        publishing(clean_broker) as publisher,
        consuming(f"{proxy.url}?heartbeat=1", handler, publisher) as consumer,
    ):
        await send(publisher, a_chatbot(), "1", "2")
        await until(lambda: handler.begun)
        channel = consumer.subscriptions.partitions[0]._delivered_on
        proxy.lose()
        proxy.heal()  # for new connections
        await until(lambda: consumer.subscriptions.partitions[0]._delivered_on is not channel)
        assert handler.begun == ["1"]
        release.set()
        await until(lambda: handler.done == ["1", "1", "2"])
        assert handler.envelopes[-2].redelivered


async def test_consumer_waits_for_its_broker(clean_broker: str) -> None:
    """A consumer that starts before its broker is there is not ready, and subscribes once it is."""
    handler = Handler()
    async with Proxy(clean_broker) as proxy, publishing(clean_broker) as publisher:
        proxy.refuse()
        async with asyncio.timeout(SECONDS):
            starting = asyncio.create_task(_handle_one(proxy.url, handler, publisher))
            await send(publisher, a_chatbot(), "1")
            await asyncio.sleep(0)
            assert not handler.begun
            proxy.heal()
            await starting
    assert handler.done == ["1"]


async def _handle_one(url: str, handler: Handler, publisher: Publisher) -> None:
    async with consuming(url, handler, publisher) as consumer:
        assert consumer.ready
        await until(lambda: handler.done)


async def test_broker_restart(breakable_broker: Broker) -> None:
    """Confirmed messages outlive the broker's restart; publisher, consumer and listener come back by themselves."""
    url, chatbot_id = breakable_broker.url, a_chatbot()
    heard: list[str] = []
    release = asyncio.Event()

    async def work(_message: SendMessage) -> None:
        await release.wait()

    handler = Handler(work)
    listener = Listener(url, 1, lambda cause, _: heard.append(cause))
    listener.start()
    async with publishing(url) as publisher:
        await send(publisher, chatbot_id, *(str(number) for number in range(20)))
        await publisher.publish_raw(b"?", exchange=DEAD_LETTERS, routing_key="why", properties=properties("dead"))
        async with consuming(url, handler, publisher, prefetch=5):
            await until(lambda: handler.begun == ["0"])
            await _until_heard(publisher, chatbot_id, heard, "before")

            await breakable_broker.stop()
            with pytest.raises(BrokerUnavailable):
                await send(publisher, chatbot_id, "20")
            await breakable_broker.start()

            await RetryWhileUnavailable()(partial(send, publisher, chatbot_id, "20"))
            await _until_heard(publisher, chatbot_id, heard, "after")
            release.set()
            await until(lambda: handler.done[-1:] == ["20"])
            assert list(dict.fromkeys(handler.done)) == [str(number) for number in range(21)]
        async with Amqp(url) as amqp:
            assert await amqp.waiting(QUEUE) == 0
            (dead,) = await amqp.take(DEAD_LETTERS)
            assert dead.message_id == "dead"
    await listener.stop()


async def _until_heard(publisher: Publisher, chatbot_id: UUID, heard: list[str], cause: str) -> None:
    """Announce until the listener hears it: an event that nobody listens to is lost, by design."""
    for number in range(int(10 * SECONDS)):
        await RetryWhileUnavailable()(partial(announce, publisher, chatbot_id, f"{cause} {number}"))
        if any(heard_cause.startswith(cause) for heard_cause in heard):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"the listener never heard {cause}")


async def test_listener_hears_what_callers_wait_for(clean_broker: str) -> None:
    """It hears session, chatbot and command events, by their correlation id and key, and no others."""
    heard: list[str] = []
    keys: list[str] = []
    chatbot_id = a_chatbot()
    session = SessionConnected(
        session_id="s", chatbot_id=chatbot_id, status=SessionStatus.CONNECTED, version=1, occurred_at=NOW
    )
    rejected = CommandRejected(command_id="c", command="x", chatbot_id=chatbot_id, code="no_session", detail="none")
    started = ConversationStarted(
        conversation_id=chatbot_id, chatbot_id=chatbot_id, external_user_id="1", occurred_at=NOW
    )
    listener = Listener(clean_broker, 1, lambda cause, key: (heard.append(cause), keys.append(key)))
    listener.start()
    async with publishing(clean_broker) as publisher:
        await _until_heard(publisher, chatbot_id, heard, "warm")
        for number, event in enumerate((session, started, rejected)):
            await publisher.publish(event, message_id=f"m{number}", correlation_id=event.name)
        await publisher.publish_raw(
            b"{}", exchange=EVENTS, routing_key="message.received", properties=properties("m9", note="no event of ours")
        )
        await announce(publisher, chatbot_id, "last")
        await until(lambda: heard[-1:] == ["last"])
    await listener.stop()
    rest = [(cause, key) for cause, key in zip(heard, keys, strict=True) if not cause.startswith("warm")]
    assert rest == [(cause, str(chatbot_id)) for cause in ("session.connected", "command.rejected", "last")]


@pytest.mark.parametrize("loss", ["cut", "cut_clients"])
async def test_listener_recovers(clean_broker: str, loss: str) -> None:
    """A listener hears again after a lost connection, also while the broker still believes in the old one."""
    heard: list[str] = []
    async with Proxy(clean_broker) as proxy, publishing(clean_broker) as publisher:
        listener = Listener(f"{proxy.url}?heartbeat=1", 1, lambda cause, _: heard.append(cause))
        listener.start()
        await _until_heard(publisher, a_chatbot(), heard, "before")
        getattr(proxy, loss)()
        await _until_heard(publisher, a_chatbot(), heard, "after")
        await listener.stop()
        await until(lambda: proxy.open == 0)


async def test_listener_waits_for_its_broker(clean_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that starts before its broker hears once it is there, and stops at any time."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 600)  # told once is enough
    heard: list[str] = []
    async with Proxy(clean_broker) as proxy, publishing(clean_broker) as publisher:
        proxy.refuse()
        never, listener = (Listener(proxy.url, 1, lambda cause, _: heard.append(cause)) for _ in range(2))
        never.start()
        listener.start()
        await asyncio.wait_for(never.stop(), SECONDS)
        proxy.heal()
        await _until_heard(publisher, a_chatbot(), heard, "now")
        await listener.stop()
