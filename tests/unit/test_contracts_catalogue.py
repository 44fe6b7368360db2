"""The catalogue names every message once, in an order in which one can read it."""

import importlib
import pkgutil
from collections.abc import Iterator

import whatsapp_qr_contracts
from whatsapp_qr_contracts.catalogue import BY_NAME, MESSAGES
from whatsapp_qr_contracts.message import COMMANDS, EVENTS, GATEWAY, JOBS, Message


def below(kind: type[Message]) -> Iterator[type[Message]]:
    """Yield every message class under one: those with a name of their own."""
    for one in kind.__subclasses__():
        if "name" in vars(one) and one.__module__.startswith(f"{whatsapp_qr_contracts.__name__}."):
            yield one
        yield from below(one)


def test_no_message_is_missing() -> None:
    """One that is not in the tuple would be in no document."""
    for module in pkgutil.iter_modules(whatsapp_qr_contracts.__path__):
        importlib.import_module(f"{whatsapp_qr_contracts.__name__}.{module.name}")
    found = set(below(Message))
    assert len(found) > 20
    assert {kind.__name__ for kind in found - set(MESSAGES)} == set()
    assert set(MESSAGES) == found


def test_each_is_found_by_its_name() -> None:
    """Names are unique, and lead back to the class."""
    assert len(BY_NAME) == len(MESSAGES)
    assert [BY_NAME[message.name] for message in MESSAGES] == list(MESSAGES)


def test_they_come_in_reading_order() -> None:
    """Commands, what the gateway reports, jobs, events."""
    assert list(dict.fromkeys(message.exchange for message in MESSAGES)) == [COMMANDS, GATEWAY, JOBS, EVENTS]
    order = [COMMANDS, GATEWAY, JOBS, EVENTS]
    assert sorted(MESSAGES, key=lambda message: order.index(message.exchange)) == list(MESSAGES)
