"""Who may do what on the broker: each process has a user with no more than it needs. From `messaging.topology`.

RabbitMQ knows three rights on a name, be it an exchange's or a queue's: to configure it (declare, delete), to write to
it (publish; bind a queue), to read from it (consume; bind to an exchange). Looking whether something exists needs none.
Nobody has a right to the default exchange, which would reach any queue by its name.
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
        """Return the three expressions as RabbitMQ names them."""
        return {"configure": self.configure, "write": self.write, "read": self.read}


def users() -> Iterator[Rights]:
    """Yield all users: those of the processes, those that act once, and one for each kind of client."""
    yield from _processes()
    yield from _others()
    yield from _clients()


def _processes() -> Iterator[Rights]:
    yield Rights(
        "whatsapp-qr-ingress",
        "publishes commands and what the gateway reports; hears events on a queue of its own",
        configure=_any(_own(INGRESS_PREFIX)),
        write=_any(COMMANDS, GATEWAY, DEAD_LETTERS, _own(INGRESS_PREFIX)),
        read=_any(EVENTS, _own(INGRESS_PREFIX)),
    )
    # What came without a partition is rerouted, and the reconciler asks for repairs like anybody else.
    everything = _any(COMMANDS, GATEWAY, EVENTS, JOBS)
    yield Rights(
        "whatsapp-qr-session-consumer",
        "reads its queues and the dead letters; publishes to every other exchange",
        write=everything,
        read=_any(SESSIONS, DEAD_LETTERS),
    )
    yield Rights(
        "whatsapp-qr-conversation-consumer",
        "reads its queues; publishes to every exchange but the dead letters",
        write=everything,
        read=_any(CONVERSATIONS),
    )
    yield Rights(
        "whatsapp-qr-outbound-consumer",
        "reads its queues; publishes events, and probes of its queues",
        write=_any(EVENTS, JOBS),
        read=_any(SENDS),
    )


def _others() -> Iterator[Rights]:
    # Binding needs the right to write to the queue and to read from the exchange; a queue with a dead-letter exchange,
    # and an exchange with an alternate one, that to read from the one and to write to the other.
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
        "whatsapp-qr dead-letters and messages: puts messages back where they came from",
        write=_any(COMMANDS, GATEWAY, JOBS),
    )
    yield Rights("whatsapp-qr-keda", "looks at the lengths of queues by the management API", tags=("monitoring",))


def _clients() -> Iterator[Rights]:
    yield Rights(
        "ai-worker",
        "takes customers' messages and answers them",
        write=_any(COMMANDS),
        read=_any(IncomingJob.name),
    )
    yield event_subscriber("event-subscriber")


def event_subscriber(name: str) -> Rights:
    """Return the rights of a service that follows events on queues of its own, whose names begin with its name."""
    own = _own(f"{name}.")
    return Rights(
        name,
        f"follows events on queues of its own, {name}.…",
        configure=_any(own),
        write=_any(own),
        read=_any(EVENTS, own),
    )


@dataclass(frozen=True)
class _Pattern:
    """What is a regular expression already."""

    expression: str


def _own(prefix: str) -> _Pattern:
    return _Pattern(f"{_literal(prefix)}.*")


def _any(*names: str | PartitionedQueue | _Pattern) -> str:
    """Return an expression for exactly these names, whatever the number of partitions."""
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
    """Return the users and their rights as RabbitMQ imports them; a user without a password cannot log in.

    Exchanges and queues are not part of it: an import never changes or removes one, and says nothing of that.
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
