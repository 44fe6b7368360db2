"""The contracts say of every message what it means, how it travels and how it looks."""

import importlib
import inspect
import pkgutil
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

import whatsapp_qr_contracts
from schemas.catalogue import examples
from service.messaging import topology
from whatsapp_qr_contracts.catalogue import MESSAGES
from whatsapp_qr_contracts.commands import Command, InitializeSession, SendMessage
from whatsapp_qr_contracts.events import CommandRejected, MessageEvent, SessionEvent
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import Headers, Message, ServiceHeaders, WireModel
from whatsapp_qr_contracts.partitions import chatbot_key

MODELS = sorted(
    {
        kind
        for module in pkgutil.iter_modules(whatsapp_qr_contracts.__path__)
        for _, kind in inspect.getmembers(importlib.import_module(f"whatsapp_qr_contracts.{module.name}"))
        if inspect.isclass(kind)
        and issubclass(kind, (WireModel, Headers))
        and kind.__module__.startswith(whatsapp_qr_contracts.__name__)
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_everything_has_a_description(model: type[BaseModel]) -> None:
    """Each model has a docstring of its own, and each field says what it holds."""
    assert "__doc__" in vars(model)
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_example_is_one(model: type[BaseModel]) -> None:
    """What stands in the documents as an example is accepted, whole and without what may be left out."""
    if issubclass(model, Headers):
        model.model_validate(model.example(1), strict=True)
    elif issubclass(model, WireModel):
        for example in (model.example(), model.example(required_only=True)):
            assert model.model_validate(example).model_dump(by_alias=True).keys() >= example.keys()
    else:
        pytest.fail(f"{model} is neither")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_every_message_has_an_example_that_survives_the_wire(message: type[Message]) -> None:
    """The examples of commands are many: whole, and short."""
    assert examples(message)
    for example in examples(message):
        read = message.model_validate(example)
        assert message.read(read.wire()) == read


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_the_contract_names_the_way_of_each_message(message: type[Message]) -> None:
    """Exchange, routing key and partition key are what the service uses."""
    assert message.routing_key.format(partition=1) == topology.routing_key(message, 1)
    assert any(exchange.name == message.exchange for exchange in topology.EXCHANGES)
    assert message.model_validate(message.example()).partition_key == ServiceHeaders.example(1)["partition-key"]
    assert message.headers.example(message.schema_version)["schema-version"] == message.schema_version
    assert set(message.headers.example(1)) >= {"partition-key", "schema-version"}


def test_the_partition_key_of_a_foreign_session_is_the_session() -> None:
    """Its id does not say which chatbot it belongs to."""
    job = SendJob(session_id="main", to="1", message="m", message_id=UUID(int=1), conversation_id=UUID(int=2))
    assert job.partition_key == "main"
    command = SendMessage(chatbot_id=UUID("DEADBEEF-0000-4000-8000-00000000CAFE"), to="5491112345678", message="m")
    assert command.partition_key == chatbot_key(command.chatbot_id) == "deadbeef-0000-4000-8000-00000000cafe"


def test_headers_of_a_command_may_be_left_out_and_those_of_a_job_not() -> None:
    """The service asks for little and promises much."""
    assert Command.headers.model_validate({"x-other": 1}) == Command.headers()
    with pytest.raises(ValueError, match="conversation-sequence"):
        IncomingJob.headers.model_validate({"partition-key": "k", "schema-version": 1})


def test_what_only_the_service_uses_is_in_no_example() -> None:
    """`repairOf` is for the reconciler."""
    assert [list(example) for example in examples(InitializeSession)] == [["chatbotId", "requestedAt"], ["chatbotId"]]


def test_a_model_whose_required_field_has_no_example_shows_none() -> None:
    """Its schema is complete without."""

    class Bare(WireModel):
        """Has no example."""

        name: str

    assert "examples" not in Bare.model_json_schema()
    with pytest.raises(LookupError, match="name"):
        Bare.example()


@pytest.mark.parametrize("message", [one for one in MESSAGES if issubclass(one, MessageEvent)])
def test_every_event_of_a_message_has_its_version(message: type[Message]) -> None:
    """Without it, nobody could tell late news from new ones."""
    assert message.example()["version"] == 2
    with pytest.raises(ValueError, match="version"):
        message.model_validate({name: value for name, value in message.example().items() if name != "version"})


def test_a_rejection_names_its_message_where_there_is_one() -> None:
    """It is null for what is asked of a session, and may be missing in what an earlier version wrote."""
    example = CommandRejected.example()
    assert CommandRejected.model_validate(example).message_id == UUID(example.pop("messageId"))
    assert CommandRejected.model_validate(example).message_id is None
    assert b'"messageId":null' in CommandRejected.model_validate(example).wire()


def test_the_examples_tell_one_story() -> None:
    """The same chatbot, session, conversation and message everywhere, so that documents can be read side by side."""
    found: dict[str, set[Any]] = {}
    for message in MESSAGES:
        for name, value in message.example().items():
            if name in {"chatbotId", "sessionId", "conversationId", "externalUserId"}:
                found.setdefault(name, set()).add(value)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 1)
    assert SessionEvent.example()["sessionId"].startswith("session_" + SessionEvent.example()["chatbotId"])
