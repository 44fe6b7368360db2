"""One JSON Schema per message, and how each travels, for whoever reads neither Python nor AsyncAPI."""

from importlib.metadata import version
from typing import Any

from schemas.catalogue import headers_schema, message_schema
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.jobs import IncomingJob
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, Message

ROUTING = "routing.json"
FOLDER = "messages"


def message_documents() -> dict[str, Any]:
    """Return every document by its path: `messages/<name>.json`, and `routing.json`, which lists them."""
    documents = {f"{FOLDER}/{message.name}.json": message_schema(message) for message in MESSAGES}
    routing = {
        "version": version("whatsapp-qr-contracts"),
        "messages": {message.name: _routing(message) for message in MESSAGES},
    }
    return documents | {ROUTING: routing}


def _routing(message: type[Message]) -> dict[str, Any]:
    return {
        "schema": f"{FOLDER}/{message.name}.json",
        "schemaVersion": message.schema_version,
        "writer": "you" if message.exchange == COMMANDS else "service",
        "public": message.exchange in {COMMANDS, EVENTS} or message is IncomingJob,
        "exchange": message.exchange,
        "routingKey": message.routing_key,
        "partitionKeyFrom": message.keyed_by,
        "headers": headers_schema(message),
    }
