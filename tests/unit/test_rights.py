"""The broker's users: each may do what it has to, and nothing else."""

import base64
import hashlib
import re

import pytest

from service.operating import rights
from service.operating.rights import Rights
from tests.allowed import ALLOWED, NAMES

USERS = {one.user: one for one in rights.users()}


def granted(expression: str) -> set[str]:
    """Return the names that an expression lets pass, as RabbitMQ asks: is it found anywhere?"""
    return {name for name in NAMES if re.search(expression, name)}


def test_every_user_is_in_the_table() -> None:
    """A user that somebody adds has to be thought about here as well."""
    assert USERS.keys() == ALLOWED.keys()


@pytest.mark.parametrize("user", ALLOWED)
@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_a_user_may_do_exactly_what_it_has_to(user: str, right: str) -> None:
    """Every user on every name: allowed what the table says; names that only look alike are refused."""
    allowed = dict(zip(("configure", "write", "read"), ALLOWED[user], strict=True))
    assert granted(USERS[user].permission[right]) == allowed[right]


@pytest.mark.parametrize("one", USERS.values(), ids=USERS)
def test_expressions_are_anchored_and_literal(one: Rights) -> None:
    """A dot that is not escaped, or an end that is open, lets in what nobody thought of."""
    for expression in one.permission.values():
        assert expression.startswith("^")
        assert expression.endswith("$")
        assert not re.search(r"(?<!\\)\.(?!\*\)|\*\|)", expression)


def test_only_one_user_declares_what_all_share() -> None:
    """Besides the topology step, a user may at most configure queues of its own."""
    shared = ALLOWED["whatsapp-qr-topology"][0]
    assert [user for user, one in USERS.items() if granted(one.configure) & shared] == ["whatsapp-qr-topology"]


def test_an_event_subscriber_of_any_name_has_queues_of_its_own() -> None:
    """Two of them cannot touch each other's queues, also where one's name begins with the other's."""
    one = rights.event_subscriber("billing")
    assert re.search(one.read, "billing.events")
    assert re.search(one.read, "whatsapp-qr.events")
    for name in ("billing", "billing2.events", "xbilling.events", "whatsapp-qr.commands", "incoming-messages"):
        assert not any(re.search(expression, name) for expression in one.permission.values())


def test_definitions_hold_hashes_never_passwords() -> None:
    """What RabbitMQ imports: a salted SHA-256 for whoever has a password; without one nobody can log in."""
    found = rights.definitions({"ai-worker": "a marked secret"}, vhost="v")
    users = {user["name"]: user for user in found["users"]}
    assert "a marked secret" not in str(found)
    hashed = base64.b64decode(users.pop("ai-worker")["password_hash"])
    assert hashed[4:] == hashlib.sha256(hashed[:4] + b"a marked secret").digest()
    assert {user["password_hash"] for user in users.values()} == {""}
    assert {one["vhost"] for one in found["permissions"]} == {"v"}
    assert {one["user"] for one in found["permissions"]} == ALLOWED.keys()
