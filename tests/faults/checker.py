"""The judge: compares what was promised with what has become of it. Pure, so that it can itself be tested."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.facts import Facts, Heard, Row, Sent, by_text
from tests.faults.ledger import Ledger, Link

UNKNOWN = "outcome_unknown"
_ATTEMPTS = 3
TERMINAL = {"READ", "FAILED"}


@dataclass
class Verdict:
    """What is wrong, by kind; and what went as an honest limit allows."""

    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """States, dead letters, sessions and processes that are not as they must be."""
    failed: Counter[str] = field(default_factory=Counter)
    """Messages to send that failed, by error code."""
    unknown: list[str] = field(default_factory=list)
    """Messages FAILED with `outcome_unknown`: they may have gone out, and their sender was told so."""

    @property
    def faults(self) -> list[str]:
        """Everything that breaks a promise."""
        return [*self.lost, *self.doubled, *self.disordered, *self.wrong]


def judge(ledger: Ledger, facts: Facts) -> Verdict:
    """Return what of the promises was broken."""
    verdict = Verdict(accepted=ledger.accepted)
    for link in ledger.links:
        rows = [row for row in facts.rows if row.session_id == link.session_id]
        _outgoing(link, [row for row in rows if row.outgoing], facts, verdict)
        _incoming(link, [row for row in rows if not row.outgoing], facts, verdict)
    _failures(ledger, verdict)
    _strangers(ledger, facts, verdict)
    _events(ledger, facts, verdict)
    _newest(facts, verdict)
    _answers(ledger, facts, verdict)
    _dead_letters(ledger, facts, verdict)
    for session_id, status in _expected_sessions(ledger).items():
        if facts.sessions.get(session_id) != status:
            verdict.wrong.append(f"{session_id} is {facts.sessions.get(session_id)}, not {status}")
    verdict.wrong += facts.exits
    verdict.wrong += [f"left to do: {what}" for what in facts.unfinished]
    return verdict


def _outgoing(link: Link, rows: list[Row], facts: Facts, verdict: Verdict) -> None:
    by_id = {row.id: row for row in rows}
    sent = [one for one in facts.sent if one.session_id == link.session_id]
    at_gateway = by_text(sent)
    for given in link.outgoing:
        row = by_id.get(given.id)
        found: list[Sent] = at_gateway[given.text]
        if row is None:
            verdict.lost.append(f"accepted and no row: {given.text}")
            continue
        if row.text != given.text:
            verdict.wrong.append(f"not as it was given: {row}")
        _ended(row, found, verdict)
        if len(found) > 1:
            verdict.doubled.append(f"at the gateway under {[one.whatsapp_id for one in found]}: {given.text}")
        if any(one.whatsapp_id != row.whatsapp_id for one in found):
            verdict.doubled.append(f"at the gateway under an id that is not its own: {given.text}")
    _in_order("sent", [given.text for given in link.outgoing], [one.text for one in sent], verdict)


def _ended(row: Row, found: list[Sent], verdict: Verdict) -> None:
    """Look at the state in which a message to send has come to rest."""
    if row.status == "FAILED" and row.error is not None:
        verdict.failed[row.error] += 1
    if (row.status, row.error) == ("FAILED", UNKNOWN):
        verdict.unknown.append(f"{row.text}: {len(found)} at the gateway")
        if row.attempts != _ATTEMPTS:
            verdict.wrong.append(f"given up too early: {row}")
    elif row.status == "FAILED":
        verdict.wrong += [f"{row.error} and at the gateway: {one}" for one in found]
    elif row.status != "READ":
        verdict.wrong.append(f"not in a state that is the last: {row}")
    if row.status != "FAILED" and not found:
        verdict.lost.append(f"{row.status} and not at the gateway: {row.text}")


def _failures(ledger: Ledger, verdict: Verdict) -> None:
    """Compare the failures with what was done to the gateway: nothing else may fail a message."""
    sends = sum(len(link.outgoing) for link in ledger.links)
    for code, count in verdict.failed.items():
        if count > ledger.may_fail.get(code, 0.0) * sends:
            verdict.wrong.append(f"{count} of {sends} messages failed with {code}: nothing that was done explains it")


def _incoming(link: Link, rows: list[Row], facts: Facts, verdict: Verdict) -> None:
    stored = defaultdict(list)
    for row in rows:
        stored[row.whatsapp_id].append(row)
    jobs = by_text(facts.jobs)
    for given in link.incoming:
        found = stored[given.id]
        if not found:
            verdict.lost.append(f"accepted and not stored: {given.text}")
            continue
        if len(found) > 1:
            verdict.doubled.append(f"stored {len(found)} times: {given.text}")
        if found[0].text != given.text:
            verdict.wrong.append(f"not as it was given: {found[0]}")
        verdict.wrong += [
            f"a job about another message: {job}" for job in jobs[given.text] if job.message_id != found[0].id
        ]
        ids = {job.id for job in jobs[given.text]}
        if not ids:
            verdict.lost.append(f"stored and never handed over: {given.text}")
        if len(ids) > 1:
            verdict.doubled.append(f"handed over under {len(ids)} ids: {given.text}")
    texts = [given.text for given in link.incoming]
    numbered = sorted(rows, key=lambda row: row.sequence or 0)
    if [row.sequence for row in numbered] != list(range(1, len(rows) + 1)):
        verdict.wrong.append(f"sequence of {link.session_id} is {[row.sequence for row in numbered]}")
    _in_order("stored", texts, [row.text for row in numbered], verdict)
    _in_order("handed over", texts, [job.text for job in facts.jobs if job.text in set(texts)], verdict)


def _in_order(what: str, given: Sequence[str], found: Iterable[str], verdict: Verdict) -> None:
    """Compare the first occurrences with the order of acceptance; what is missing is somebody else's finding."""
    first = list(dict.fromkeys(text for text in found if text in set(given)))
    expected = [text for text in given if text in set(first)]
    verdict.disordered += [
        f"{what} {after!r} where {before!r} was due" for before, after in _differing(expected, first)
    ]


def _differing(expected: list[str], found: list[str]) -> list[tuple[str, str]]:
    return [(before, after) for before, after in zip(expected, found, strict=True) if before != after]


def _strangers(ledger: Ledger, facts: Facts, verdict: Verdict) -> None:
    """Find what nobody gave: a second row or message beside the accepted one."""
    ids = {given.id for link in ledger.links for given in (*link.outgoing, *link.incoming)}
    texts = {given.text for link in ledger.links for given in (*link.outgoing, *link.incoming)}
    for row in facts.rows:
        if (row.id if row.outgoing else row.whatsapp_id) not in ids:
            verdict.wrong.append(f"nobody gave {row}")
    verdict.wrong += [f"nobody gave {one}" for one in (*facts.sent, *facts.jobs) if one.text not in texts]


def _events(ledger: Ledger, facts: Facts, verdict: Verdict) -> None:
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    rows = {row.id for row in facts.rows}
    for event in facts.events:
        ids[event.type, event.about].add(event.id)
        if event.type.startswith("message.") and event.about not in rows:
            verdict.wrong.append(f"an event about nothing: {event}")
    for (kind, about), found in ids.items():
        # News of a session have an id for each version, and an answer has one of its own.
        if kind.startswith(("message.", "conversation.")) and len(found) > 1:
            verdict.doubled.append(f"{kind} of {about} was announced under {len(found)} ids")
    for row in facts.rows:
        kind = f"message.{row.status.lower()}" if row.outgoing else "message.received"
        if (kind, row.id) not in ids:
            verdict.lost.append(f"{kind} of {row.id} was never announced")
    for session_id, status in _expected_sessions(ledger).items():
        if (f"session.{status.lower()}", session_id) not in ids:
            verdict.lost.append(f"{status} of {session_id} was never announced")


def _newest(facts: Facts, verdict: Verdict) -> None:
    """Compare how things are with what a subscriber believes who drops each event of a lower version than he knows."""
    believed: dict[str, Heard] = {}
    for event in facts.events:
        if event.version is None or not event.type.startswith(("message.", "session.")):
            continue
        known = believed.setdefault(event.about, event)
        if event.version > (known.version or 0):
            believed[event.about] = event
        elif event.version == known.version and event.status != known.status:
            verdict.wrong.append(f"two states of one version: {known} and {event}")
    is_so = {row.id: (row.version, row.status if row.outgoing else None) for row in facts.rows}
    for about, event in believed.items():
        if about in is_so and (event.version, event.status) != is_so[about]:
            verdict.wrong.append(f"a subscriber is left with {event}, and it is {is_so[about]}")
        if about in facts.sessions and event.status != facts.sessions[about]:
            verdict.wrong.append(f"a subscriber is left with {event}, and it is {facts.sessions[about]}")


def _answers(ledger: Ledger, facts: Facts, verdict: Verdict) -> None:
    answers = {(event.caused_by, event.id): event.type for event in facts.events}
    for command, may_be_rejected in ledger.commands.items():
        kinds = [kind for (caused_by, _), kind in answers.items() if caused_by == command]
        if len(kinds) != 1 or (kinds == ["command.rejected"] and not may_be_rejected):
            verdict.wrong.append(f"command {command} was answered by {kinds}")


def _dead_letters(ledger: Ledger, facts: Facts, verdict: Verdict) -> None:
    given, found = Counter(ledger.poison), Counter(facts.dead)
    verdict.lost += [f"not among the dead letters: {mark}" for mark in given - found]
    for mark in found - given:
        if found[mark] > given[mark] + ledger.repeats.get(mark, 0):
            verdict.wrong.append(f"dead letter that nobody gave, or too often: {mark}")


def _expected_sessions(ledger: Ledger) -> dict[str, str]:
    return {link.session_id: "CONNECTED" for link in ledger.links} | ledger.pairings
