"""Permissions on the broker: each process has a user with only the permissions it needs. From `messaging.topology`.

RabbitMQ has three permissions on the name of an exchange or a queue: configure (declare, delete), write (publish; bind
a queue), read (consume; bind to an exchange). A check for existence needs none. No user has a permission on the default
exchange, which would reach any queue by its name.
"""

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.messaging.topology import (
    CONVERSATIONS,
    DEAD_LETTERS,
    EXCHANGES,
    INGRESS_PREFIX,
    PARTITIONED,
    SENDS,
    SESSIONS,
    PartitionedQueue,
)
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, GATEWAY, JOBS

NOTHING = "^$"
_SALT_BYTES = 4


@dataclass(frozen=True)
class Rights:
    """A user of the broker, and the names that it may configure, write to and read from: regular expressions."""

    user: str
    purpose: str
    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    tags: tuple[str, ...] = ()

    @property
    def permission(self) -> dict[str, str]:
        """Return the three expressions under RabbitMQ's names."""
        return {"configure": self.configure, "write": self.write, "read": self.read}


def users() -> Iterator[Rights]:
    """Yield all users: those of the processes, those of single commands, and one for each kind of client."""
    yield from _processes()
    yield from _others()
    yield from _clients()


def _processes() -> Iterator[Rights]:
    yield Rights(
        "whatsapp-qr-ingress",
        "publishes commands and the gateway's reports; receives events on its own queue",
        configure=_any(_own(INGRESS_PREFIX)),
        write=_any(COMMANDS, GATEWAY, DEAD_LETTERS, _own(INGRESS_PREFIX)),
        read=_any(EVENTS, _own(INGRESS_PREFIX)),
    )
    # Messages without a partition are rerouted, and the reconciler publishes repairs as commands.
    everything = _any(COMMANDS, GATEWAY, EVENTS, JOBS)
    yield Rights(
        "whatsapp-qr-session-consumer",
        "consumes its queues and the dead letters; publishes to every other exchange",
        write=everything,
        read=_any(SESSIONS, DEAD_LETTERS),
    )
    yield Rights(
        "whatsapp-qr-conversation-consumer",
        "consumes its queues; publishes to every exchange except the dead letters",
        write=everything,
        read=_any(CONVERSATIONS),
    )
    yield Rights(
        "whatsapp-qr-outbound-consumer",
        "consumes its queues; publishes events, and probes of its queues",
        write=_any(EVENTS, JOBS),
        read=_any(SENDS),
    )


def _others() -> Iterator[Rights]:
    # To bind needs write permission on the queue and read on the exchange. To declare a queue with a dead-letter
    # exchange, or an exchange with an alternate one, needs read permission on the former and write on the latter.
    all_names = _any(*(exchange.name for exchange in EXCHANGES), *PARTITIONED, IncomingJob.name)
    yield Rights(
        "whatsapp-qr-topology",
        "declares everything: whatsapp-qr topology apply and check",
        configure=all_names,
        write=all_names,
        read=all_names,
    )
    yield Rights(
        "whatsapp-qr-operator",
        "whatsapp-qr dead-letters and messages: replays messages to their origin",
        write=_any(COMMANDS, GATEWAY, JOBS),
    )
    yield Rights("whatsapp-qr-keda", "reads the lengths of queues by the management API", tags=("monitoring",))


def _clients() -> Iterator[Rights]:
    yield Rights(
        "ai-worker",
        "consumes customers' messages and answers them",
        write=_any(COMMANDS),
        read=_any(IncomingJob.name),
    )
    yield event_subscriber("event-subscriber")


def event_subscriber(name: str) -> Rights:
    """Return the permissions of a service that follows events on its own queues, whose names begin with its name."""
    own = _own(f"{name}.")
    return Rights(
        name,
        f"follows events on its own queues, {name}.…",
        configure=_any(own),
        write=_any(own),
        read=_any(EVENTS, own),
    )


@dataclass(frozen=True)
class _Pattern:
    """A ready regular expression."""

    expression: str


def _own(prefix: str) -> _Pattern:
    return _Pattern(f"{_literal(prefix)}.*")


def _any(*names: str | PartitionedQueue | _Pattern) -> str:
    """Return an expression for exactly these names, for any number of partitions."""
    expressions = []
    for name in names:
        match name:
            case _Pattern():
                expressions.append(name.expression)
            case PartitionedQueue():
                numbers = r"\.([0-9]+|entry)" if name.entry else r"\.[0-9]+"
                expressions.append(f"{_literal(name.name)}({numbers})?")
            case _:
                expressions.append(_literal(name))
    return f"^({'|'.join(dict.fromkeys(expressions))})$"


def _literal(name: str) -> str:
    return name.replace(".", r"\.")


def definitions(passwords: Mapping[str, str], *, vhost: str = "/") -> dict[str, Any]:
    """Return the users and their permissions in RabbitMQ's import format; a user without a password cannot log in.

    Exchanges and queues are not included: an import never changes or removes existing ones, and does not report that.
    """
    everybody = list(users())
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": one.user,
                "password_hash": _hash(passwords[one.user]) if one.user in passwords else "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": list(one.tags),
            }
            for one in everybody
        ],
        "permissions": [{"user": one.user, "vhost": vhost, **one.permission} for one in everybody],
    }


def _hash(password: str) -> str:
    salt = os.urandom(_SALT_BYTES)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
