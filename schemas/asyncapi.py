"""The AsyncAPI document: the service as its users, and those who operate it, meet it on the broker."""

from importlib.metadata import version
from typing import Any

from schemas.channels import channels, operations
from schemas.objects import message_objects, schemas

_DESCRIPTION = """\
Links chatbots to WhatsApp by QR code, and sends and receives their messages.

The operations are those of the service: what it receives you send, and the other way round. Channels and operations
tagged `internal` are the service's own; they are listed so that nothing on the broker is a riddle, and may change with
any release.

## Envelope
The body is plain JSON in camelCase. Everything about its transport is an AMQP property or header:

| property | meaning |
|---|---|
| `message_id` | stable: the same message published again has the same id; a command without one is a dead letter |
| `correlation_id` | the `message_id` of the command that it answers (see below) |
| `app_id` | who published it; `whatsapp-qr` for the service |
| `type` | the message's name; where it is missing, the routing key without the partition says it |
| `timestamp` | when it was published |
| `delivery_mode` | 2, persistent |

`message.sent`, `.delivered`, `.read` and `.failed` always have the `message.send`'s `message_id` as `correlation_id`;
`message.queued`, `message.cancelled` and `command.rejected` that of the command they answer. What the gateway reported
(`session.qr_ready`, `session.connected`, `message.received`, jobs) has an id of the service's own there: know it by
`chatbotId`.

Unknown fields are ignored. Everything may come more than once, with the same `message_id`, so keep what you have done.
Everything about one chatbot is done in the order in which it was asked, `session.*` and `chatbot.*` among themselves
and `message.*` among themselves: the two have queues of their own.
"""

_PUBLIC = "The interface for other services"
_INTERNAL = "Between the processes of the service; not for others, and may change with any release"


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "asyncapi": "3.1.0",
        "info": _info(),
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": _server()},
        "channels": channels(),
        "operations": operations(),
        "components": {
            "messages": message_objects(),
            "schemas": schemas(),
            "correlationIds": _correlation_ids(),
            "securitySchemes": {
                "userPassword": {"type": "userPassword", "description": "RabbitMQ user and password (SASL PLAIN)"}
            },
        },
    }


def _info() -> dict[str, Any]:
    return {
        "title": "WhatsApp QR service",
        "version": version("whatsapp-qr-contracts"),
        "description": _DESCRIPTION,
        "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        "tags": [{"name": "public", "description": _PUBLIC}, {"name": "internal", "description": _INTERNAL}],
    }


def _server() -> dict[str, Any]:
    return {
        "host": "localhost:5672",
        "pathname": "/",
        "protocol": "amqp",
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ 3.10 to 4.x. Host and virtual host are those of AMQP_URL in your deployment.",
        "security": [{"$ref": "#/components/securitySchemes/userPassword"}],
    }


def _correlation_ids() -> dict[str, Any]:
    return {
        "command": {
            "description": "AMQP property `message_id`: the event that ends the command has it as `correlation_id`",
            "location": "$message.header#/message_id",
        },
        "cause": {
            "description": "AMQP property `correlation_id`: the `message_id` of the command that caused it",
            "location": "$message.header#/correlation_id",
        },
    }
