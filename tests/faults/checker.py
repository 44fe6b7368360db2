"""The judge: compares what was promised with what has become of it. Pure, so that it can itself be tested."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.facts import Facts, Row, Sent, by_text
from tests.faults.ledger import Ledger, Link

UNKNOWN = "outcome_unknown"
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
        _outgoing(link, [row for row in rows if row.outgoing], facts, verdict, refusals=ledger.refusals)
        _incoming(link, [row for row in rows if not row.outgoing], facts, verdict)
    _strangers(ledger, facts, verdict)
    _events(ledger, facts, verdict)
    _dead_letters(ledger, facts, verdict)
    for session_id, status in _expected_sessions(ledger).items():
        if facts.sessions.get(session_id) != status:
            verdict.wrong.append(f"{session_id} is {facts.sessions.get(session_id)}, not {status}")
    verdict.wrong += facts.exits
    return verdict


def _outgoing(link: Link, rows: list[Row], facts: Facts, verdict: Verdict, *, refusals: bool) -> None:
    by_id = {row.id: row for row in rows}
    sent = [one for one in facts.sent if one.session_id == link.session_id]
    at_gateway = by_text(sent)
    for given in link.outgoing:
        row = by_id.get(given.id)
        found: list[Sent] = at_gateway[given.text]
        if row is None:
            verdict.lost.append(f"accepted and no row: {given.text}")
            continue
        failure = row.error if row.status == "FAILED" else None
        if row.status not in TERMINAL or failure not in {None, UNKNOWN, *(("refused",) if refusals else ())}:
            verdict.wrong.append(f"no terminal state that anybody may expect: {row}")
        if failure == UNKNOWN:
            verdict.unknown.append(f"{given.text}: {len(found)} at the gateway")
        elif failure == "refused":
            verdict.wrong += [f"refused and at the gateway: {one}" for one in found]
        elif not found:
            verdict.lost.append(f"{row.status} and not at the gateway: {given.text}")
        if len(found) > 1:
            verdict.doubled.append(f"at the gateway under {[one.whatsapp_id for one in found]}: {given.text}")
        if any(one.whatsapp_id != row.whatsapp_id for one in found):
            verdict.doubled.append(f"at the gateway under an id that is not its own: {given.text}")
    _in_order("sent", [given.text for given in link.outgoing], [one.text for one in sent], verdict)


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
    answers: dict[str, set[str]] = defaultdict(set)
    for event in facts.events:
        if event.about:
            ids[event.type, event.about].add(event.id)
        answers[event.caused_by].add(event.id)
    for (kind, about), found in ids.items():
        if len(found) > 1:
            verdict.doubled.append(f"{kind} of {about} was announced under {len(found)} ids")
    for row in facts.rows:
        kind = f"message.{row.status.lower()}" if row.outgoing else "message.received"
        if (kind, row.id) not in ids:
            verdict.lost.append(f"{kind} of {row.id} was never announced")
    for command in ledger.commands:
        if len(answers[command]) != 1:
            verdict.wrong.append(f"command {command} was answered by {len(answers[command])} events")


def _dead_letters(ledger: Ledger, facts: Facts, verdict: Verdict) -> None:
    given, found = Counter(ledger.poison), Counter(facts.dead)
    verdict.lost += [f"not among the dead letters: {mark}" for mark in given - found]
    for mark in found - given:
        if found[mark] > given[mark] + ledger.repeats.get(mark, 0):
            verdict.wrong.append(f"dead letter that nobody gave, or too often: {mark}")


def _expected_sessions(ledger: Ledger) -> dict[str, str]:
    return {link.session_id: "CONNECTED" for link in ledger.links} | ledger.pairings
