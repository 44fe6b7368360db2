"""Publishes a dead letter's original again. The only publishes besides those of `messaging.publishing`.

Those have the service's own envelope; these have the original's: nothing is added or filled in. Only its contract
headers are restored: the broker interprets some others, and would multiply the message.
"""

import struct
from types import TracebackType
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError
from aiormq.exceptions import ChannelAccessRefused, PublishError

from service.domain.dead_letters import UNROUTABLE, Original
from service.errors import BrokerUnavailable, Undeliverable
from service.messaging import topology
from service.messaging.connections import BROKER_TROUBLE, connect, unavailable
from service.messaging.envelope import NO_ID, forwarded_headers
from service.messaging.lossless import from_json

_SECONDS = 5.0


class Replayer:
    """Publishes originals, confirmed, over its own connection, which is made at the first publish.

    Args:
        url: the broker.
        partitions: partitions of each partitioned queue.
    """

    def __init__(self, url: str, partitions: int) -> None:
        self._url = url
        self._partitions = partitions
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def put_back(self, original: Original) -> None:
        """Publish a message under its own exchange, routing key, id, properties and headers.

        Raises:
            Undeliverable: it cannot be published there; nothing was published.
            BrokerUnavailable: not confirmed; it may have arrived.
        """
        self._check(original)
        message = _message(original)
        try:
            channel = await self._open()
            exchange = (
                await channel.get_exchange(original.exchange, ensure=False)
                if original.exchange
                else channel.default_exchange
            )
            await exchange.publish(message, original.routing_key, mandatory=True, timeout=_SECONDS)
        except PublishError as error:
            raise Undeliverable(_no_queue(original), code=UNROUTABLE) from error
        except ChannelNotFoundEntity as error:
            raise Undeliverable(f"there is no exchange {original.exchange!r}", code=UNROUTABLE) from error
        except ChannelAccessRefused as error:  # its exchange is not ours: later originals can still be replayed
            detail = (
                f"this user of RabbitMQ may not publish to {original.exchange!r}: see whatsapp-qr topology permissions"
            )
            raise Undeliverable(detail, code="access_refused") from error
        except DeliveryError as error:
            raise BrokerUnavailable("RabbitMQ refused the message: its queue is full") from error
        except (ValueError, TypeError) as error:  # such a name cannot be sent
            raise Undeliverable(_no_queue(original), code=UNROUTABLE) from error
        except BROKER_TROUBLE as error:
            raise unavailable(error) from error

    def _check(self, original: Original) -> None:
        if not original.exchange and not original.routing_key:
            raise Undeliverable("its origin is not known", code="unknown_origin")
        # Such an exchange would confirm it and route it to the dead letters again.
        if not topology.is_bound(original.exchange, original.routing_key, self._partitions):
            raise Undeliverable(_no_queue(original), code=UNROUTABLE)

    async def _open(self) -> AbstractChannel:
        if self._connection is None:
            self._connection = await connect(self._url)
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(on_return_raises=True)
        return self._channel


def _no_queue(original: Original) -> str:
    return f"no queue of this service is bound to {original.exchange!r} under {original.routing_key!r}"


def _message(original: Original) -> aio_pika.Message:
    try:
        message = _restored(original)
        message.properties.marshal()
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, struct.error) as error:
        raise Undeliverable(f"its properties cannot be published: {error}", code="unknown_origin") from error
    return message


def _restored(original: Original) -> aio_pika.Message:
    properties: dict[str, Any] = {name: from_json(value) for name, value in original.properties.items()}
    return aio_pika.Message(
        original.body,
        headers=forwarded_headers({name: from_json(value) for name, value in original.headers.items()}),
        content_type=properties.get("contentType"),
        content_encoding=properties.get("contentEncoding"),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,  # regardless of the original: a replay must not be lost
        priority=properties.get("priority"),
        correlation_id=properties.get("correlationId"),
        reply_to=properties.get("replyTo"),
        expiration=properties.get("expiration"),
        message_id=original.text("messageId") or NO_ID,
        timestamp=properties.get("timestamp"),
        type=properties.get("type"),
        app_id=properties.get("appId"),
        # Without the user id: the broker accepts only the publishing user's.
    )
