"""Ids that can be derived are derived: the same thing has the same id twice, different things never."""

import inspect
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.domain import identities as ids
from service.errors import GatewayRefused, ServiceError
from whatsapp_qr_contracts.partitions import partition_of, session_key

uuids = st.uuids(version=4)
without_nul = st.text(st.characters(exclude_characters="\0", codec="utf-8"))


@given(uuids)
def test_a_whatsapp_id_looks_like_those_of_web_clients(message_id: UUID) -> None:
    """3EB0 and 18 upper-case hexadecimal digits, the same each time."""
    whatsapp_id = ids.whatsapp_message_id(message_id)
    assert re.fullmatch(r"3EB0[0-9A-F]{18}", whatsapp_id)
    assert ids.whatsapp_message_id(UUID(str(message_id))) == whatsapp_id


@given(uuids, uuids, st.text(), st.text())
def test_derived_ids_are_stable_and_distinct(first: UUID, second: UUID, this: str, that: str) -> None:
    """The same source and name give the same id; another source or name another one."""
    makers = (ids.conversation_id, ids.incoming_message_id, ids.outgoing_message_id, ids.output_id)
    for make in makers:
        assert make(first, this) == make(first, this)
        assert (make(first, this) == make(second, this)) is (first == second)
        assert (make(first, this) == make(first, that)) is (this == that)


def test_ids_are_pinned() -> None:
    """A new release must find the rows of the old one: these never change."""
    chatbot = UUID("11111111-1111-4111-8111-111111111111")
    assert str(ids.conversation_id(chatbot, "5491112345678")) == "ab4ab17d-e807-50bf-8454-2669ab7fae86"
    assert str(ids.outgoing_message_id(chatbot, "key-1")) == "3adf340d-9285-513f-af81-89a863d4a7b1"
    assert ids.whatsapp_message_id(chatbot) == "3EB0E3E6AE2CD3A325471E"


@given(st.text(), st.integers(1, 1000))
def test_the_partition_of_a_row_follows_from_its_hash(key: str, partitions: int) -> None:
    """However many partitions there are: SQL computes the remainder alone."""
    assert ids.key_hash(key) % partitions == partition_of(key, partitions)


@given(uuids, without_nul, st.lists(without_nul))
def test_a_second_message_under_an_id_has_another_one(session: UUID, whatsapp_id: str, content: list[str]) -> None:
    """The same for the same content, and never that of the first message under it, or of another content."""
    made = ids.other_incoming_message_id(session, whatsapp_id, *content)
    assert made == ids.other_incoming_message_id(session, whatsapp_id, *content)
    assert made != ids.other_incoming_message_id(session, whatsapp_id, *content, "more")
    if content:
        assert made != ids.incoming_message_id(session, whatsapp_id)


@pytest.mark.parametrize(
    ("one", "other", "may_be"),
    [
        ("5491112345678", "5491112345678", True),
        ("5491112345678", "98765432109876@lid", True),
        ("98765432109876@lid", "5491112345678", True),
        ("5491112345678", "5491187654321", False),
        ("98765432109876@lid", "11111111111111@lid", False),
        ("120363040508060708@g.us", "5491112345678", False),
        ("120363040508060708@g.us", "98765432109876@lid", False),
        ("", "5491112345678", False),
        ("", "", True),
        ("status@broadcast", "5491112345678", False),
    ],
)
def test_a_number_and_a_lid_may_be_one_contact(one: str, other: str, *, may_be: bool) -> None:
    """Nothing else that is written differently may."""
    assert ids.may_be_one_contact(one, other) is may_be


def test_a_message_to_a_number_never_has_the_id_of_a_conversation() -> None:
    """Both are derived from the chatbot; the channel keeps them apart."""
    chatbot = uuid4()
    assert ids.conversation_id(chatbot, "5491112345678") != ids.outgoing_message_id(chatbot, "5491112345678")


@given(uuids, st.integers(0, 4_102_444_800_000))
def test_a_session_id_is_that_of_the_replaced_system(chatbot: UUID, milliseconds: int) -> None:
    """session_<chatbot>_<ms>, from which everybody knows the chatbot."""
    asked_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    session_id = ids.new_session_id(chatbot, asked_at)
    assert session_id.startswith(f"session_{chatbot}_")
    assert abs(int(session_id.rpartition("_")[2]) - milliseconds) <= 1
    assert session_key(session_id) == str(chatbot)


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        ("5491112345678:7@s.whatsapp.net", "5491112345678"),
        ("1234@lid", "1234@lid"),
        ("status@broadcast", "status@broadcast"),
        (" odd sender ", "odd sender"),
    ],
)
def test_a_customer_has_one_address(sender: str, address: str) -> None:
    """Devices of one customer are one; what we do not know is kept, because no message may be lost for it."""
    assert ids.customer_address(sender) == address


def test_every_error_has_a_code_of_its_own() -> None:
    """Callers decide by the code: each class has one, and a raised error may be more precise."""
    tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServiceError)]
    codes = {kind.code for kind in tree}
    assert len(codes) == len(tree)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in tree)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    for kind in tree:
        assert (kind("why").code, kind("why").detail, str(kind("why"))) == (kind.code, "why", "why")
        assert kind("why", code="precise").code == "precise"


def test_a_refusal_remembers_whether_its_code_is_the_gateways() -> None:
    """Without a code the gateway is asked what it meant."""
    assert (GatewayRefused("no").code, GatewayRefused("no").explicit) == ("refused", False)
    assert (GatewayRefused("no", code="restricted").code, GatewayRefused("no", code="restricted").explicit) == (
        "restricted",
        True,
    )
