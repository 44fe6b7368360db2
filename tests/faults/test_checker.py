"""The judge by itself: a run in which all is well has no faults, and each single thing that is wrong is found."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from tests.faults.checker import judge
from tests.faults.facts import Facts, Heard, Job, Row, Sent
from tests.faults.ledger import Given, Ledger, Link

CHATBOT = UUID(int=1)
SESSION = f"session_{CHATBOT}_1"


def a_run() -> tuple[Ledger, Facts]:
    """Return two messages each way, one command and one dead letter, all as promised."""
    out, back = [Given("o1", "out 1"), Given("o2", "out 2")], [Given("w1", "in 1"), Given("w2", "in 2")]
    link = Link(CHATBOT, SESSION, "549", out, back)
    ledger = Ledger([link], poison=["poison-1"], commands={"c1": False}, pairings={"other": "DISCONNECTED"})
    rows = [
        *(Row(given.id, SESSION, True, given.text, "READ", f"W{given.id}", None, None, 4, 0) for given in out),
        *(
            Row(f"r{n}", SESSION, False, given.text, "DELIVERED", given.id, None, n, 1, 0)
            for n, given in enumerate(back, 1)
        ),
    ]
    events = [
        Heard(f"e{row.id}", "message.read", row.id, "", 4, "READ")
        if row.outgoing
        else Heard(f"e{row.id}", "message.received", row.id, "", 1)
        for row in rows
    ]
    facts = Facts(
        rows=rows,
        sent=[Sent(SESSION, f"W{given.id}", given.text) for given in out],
        jobs=[Job(f"j{n}", f"r{n}", given.text) for n, given in enumerate(back, 1)],
        events=[
            *events,
            Heard("e1", "session.connected", SESSION, "", 3, "CONNECTED"),
            Heard("e2", "session.disconnected", "other", "", 4, "DISCONNECTED"),
            Heard("ec", "chatbot.registered", "", "c1"),
        ],
        dead=["poison-1"],
        sessions={SESSION: "CONNECTED", "other": "DISCONNECTED"},
    )
    return ledger, facts


def test_all_is_well() -> None:
    """What may be repeated was repeated, too, and what is old came late."""
    ledger, facts = a_run()
    facts.jobs += facts.jobs
    facts.events += facts.events
    facts.events.append(replace(facts.events[0], id="sent", type="message.sent", version=2, status="SENT"))
    facts.events.append(replace(facts.events[-2], version=2, status="QR_READY"))
    verdict = judge(ledger, facts)
    assert verdict.faults == []
    assert verdict.accepted == 4


def test_an_unknown_outcome_is_listed() -> None:
    """A message that failed so may be at the gateway or not; it is no fault, and it is shown."""
    ledger, facts = a_run()
    ledger.may_fail["outcome_unknown"] = 0.5
    facts.rows[0] = replace(facts.rows[0], status="FAILED", error="outcome_unknown", attempts=3)
    facts.events[0] = replace(facts.events[0], type="message.failed", status="FAILED")
    for sent in (facts.sent, facts.sent[1:]):
        verdict = judge(ledger, replace(facts, sent=sent))
        assert verdict.faults == []
        assert len(verdict.unknown) == 1


def _row(number: int, **fields: object) -> Callable[[Ledger, Facts], None]:
    def change(_ledger: Ledger, facts: Facts) -> None:
        facts.rows[number] = replace(facts.rows[number], **fields)  # type: ignore[arg-type]

    return change


def _changed(kind: str, **fields: object) -> Callable[[Ledger, Facts], None]:
    def change(_ledger: Ledger, facts: Facts) -> None:
        found = getattr(facts, kind)
        found[-1] = replace(found[-1], **fields)

    return change


WRONG: dict[str, tuple[str, Callable[[Ledger, Facts], object]]] = {
    "no row of a message to send": ("lost", lambda _, facts: facts.rows.pop(0)),
    "no row of a customer's message": ("lost", lambda _, facts: facts.rows.pop(2)),
    "not at the gateway": ("lost", lambda _, facts: facts.sent.pop()),
    "not handed over": ("lost", lambda _, facts: facts.jobs.pop()),
    "not announced": ("lost", lambda _, facts: facts.events.pop(0)),
    "a dead letter less": ("lost", lambda _, facts: facts.dead.pop()),
    "at the gateway twice": ("doubled", lambda _, facts: facts.sent.append(replace(facts.sent[0], whatsapp_id="X"))),
    "at the gateway under another id": ("doubled", _row(0, whatsapp_id="X")),
    "stored twice": ("doubled", lambda _, facts: facts.rows.append(replace(facts.rows[2], id="x", sequence=3))),
    "two jobs": ("doubled", lambda _, facts: facts.jobs.append(replace(facts.jobs[0], id="x"))),
    "two events": ("doubled", lambda _, facts: facts.events.append(replace(facts.events[0], id="x"))),
    "sent in the wrong order": ("disordered", lambda _, facts: facts.sent.reverse()),
    "handed over in the wrong order": ("disordered", lambda _, facts: facts.jobs.reverse()),
    "stored in the wrong order": ("disordered", lambda ledger, _: ledger.links[0].incoming.reverse()),
    "still pending": ("wrong", _row(0, status="PENDING")),
    "failed for no reason": ("wrong", _row(0, status="FAILED", error="expired")),
    "failed as unknown though nothing explains it": (
        "wrong",
        _row(0, status="FAILED", error="outcome_unknown", attempts=3),
    ),
    "a job about another message": (
        "wrong",
        _changed("jobs", message_id="x"),
    ),
    "the newest version is not the state": ("wrong", _row(0, version=5)),
    "another state under the newest version": (
        "wrong",
        lambda _, facts: facts.events.insert(0, replace(facts.events[0], id="x", type="message.sent", status="SENT")),
    ),
    "a session's newest version is not its state": (
        "wrong",
        lambda _, facts: facts.events.append(replace(facts.events[-3], id="x", version=9, status="QR_READY")),
    ),
    "something left to tell": ("wrong", lambda _, facts: facts.unfinished.append("version 2 of message r1")),
    "another text to send": ("wrong", _row(0, text="out 3")),
    "a session's state not announced": ("lost", lambda _, facts: facts.events.pop(-2)),
    "an event about nothing": ("wrong", lambda _, facts: facts.events.append(Heard("x", "message.read", "x", ""))),
    "a command rejected": (
        "wrong",
        _changed("events", type="command.rejected"),
    ),
    "refused though nobody refused": ("wrong", _row(0, status="FAILED", error="refused")),
    "another text": ("wrong", _row(2, text="in 3")),
    "a gap in the sequence": ("wrong", _row(3, sequence=3)),
    "a stranger at the gateway": ("wrong", lambda _, facts: facts.sent.append(Sent(SESSION, "X", "who?"))),
    "a stranger's row": ("wrong", lambda _, facts: facts.rows.append(replace(facts.rows[0], id="x"))),
    "a command without answer": ("wrong", lambda _, facts: facts.events.pop()),
    "a command with two answers": (
        "wrong",
        lambda _, facts: facts.events.append(Heard("x", "y", "", "c1")),
    ),
    "a dead letter more": ("wrong", lambda _, facts: facts.dead.append("invalid_message")),
    "a session that is not as it was left": ("wrong", lambda _, facts: facts.sessions.update(other="CONNECTED")),
    "a process that ended": ("wrong", lambda _, facts: facts.exits.append("ingress")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    """Each by itself turns the verdict red, under its own kind."""
    ledger, facts = a_run()
    kind, harm = WRONG[name]
    harm(ledger, facts)
    assert getattr(judge(ledger, facts), kind)
