"""The operator's actions on dead letters: find, replay, discard."""

import json
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from service.errors import Rejected, Undeliverable
from service.messaging.publishing import Publisher
from service.operating.replaying import Replayer
from service.persistence import dead_letters, deployment
from service.persistence.database import Database
from service.persistence.tables import DeadLetterRow, now
from whatsapp_qr_contracts.codes import DeadLetterReason
from whatsapp_qr_contracts.gateway import GatewayReport, Incoming, Webhook

_CALLBACKS: dict[str, TypeAdapter[Any]] = {
    "/whatsapp-qr/webhook": TypeAdapter(Webhook),
    "/whatsapp-qr/incoming": TypeAdapter(Incoming),
}


@dataclass(frozen=True)
class Selection:
    """A selection of dead letters: by id or its beginning, by reason, or all."""

    ids: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result for one dead letter."""

    id: str
    outcome: Literal["replayed", "discarded", "would be replayed", "would be discarded", "failed"]
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether it stays unchanged."""
        return self.outcome == "failed"


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters' table, and the actions on it.

    Every method raises BrokerUnavailable or DatabaseUnavailable; earlier actions stay done.
    """

    database: Database
    publisher: Publisher
    replayer: Replayer

    async def newest(self, *, reason: str | None, limit: int) -> list[DeadLetterRow]:
        """Return dead letters, the newest first."""
        return await self.database.read(lambda tx: dead_letters.newest(tx, reason=reason, limit=limit))

    async def one(self, prefix: str) -> DeadLetterRow:
        """Return the dead letter whose id begins like this.

        Raises:
            Rejected: none does, or several do.
        """
        row_id = await find(self.database, DeadLetterRow, prefix)
        return await self.database.read(lambda tx: tx.get_one(DeadLetterRow, row_id))

    async def replay(self, selection: Selection, *, dry_run: bool) -> AsyncIterator[Result]:
        """Publish messages again to their origin, oldest dead letter first; then record that in their rows.

        A crash in between replays one twice, under the same id. Selected by reason or all: those not replayed yet.

        Raises:
            ConfigurationError: the database has another PARTITIONS.
        """
        await self.database.read(partial(deployment.check, partitions=self.publisher.partitions))
        async for row_id, trouble in self._chosen(selection, waiting=True):
            yield trouble or (Result(str(row_id), "would be replayed") if dry_run else await self._replay(row_id))

    async def discard(self, selection: Selection, *, dry_run: bool) -> AsyncIterator[Result]:
        """Delete dead letters permanently, even replayed ones."""
        async for row_id, trouble in self._chosen(selection, waiting=False):
            yield trouble or (Result(str(row_id), "would be discarded") if dry_run else await self._discard(row_id))

    async def _chosen(self, selection: Selection, *, waiting: bool) -> AsyncIterator[tuple[UUID, Result | None]]:
        if not selection.ids:
            reason = selection.reason
            newest = await self.database.read(partial(dead_letters.newest, reason=reason, limit=1))
            # A message that becomes a dead letter again meanwhile is not selected again: its time is later than all
            # these.
            until = newest[0].died_at if newest else now()
            those = partial(dead_letters.ids_with, reason=reason, waiting=waiting, until=until)
            page = await self.database.read(those)
            while page:
                for _, row_id in page:
                    yield row_id, None
                page = await self.database.read(partial(those, after=page[-1]))
        for prefix in dict.fromkeys(selection.ids):
            try:
                yield await find(self.database, DeadLetterRow, prefix), None
            except Rejected as error:
                yield UUID(int=0), Result(prefix, "failed", error.detail)

    async def _replay(self, row_id: UUID) -> Result:
        row = await self.database.read(lambda tx: tx.get(DeadLetterRow, row_id))
        if row is None:
            return Result(str(row_id), "failed", "it was discarded meanwhile")
        try:
            await self._put_back(row)
        except Undeliverable as error:
            return Result(str(row_id), "failed", f"{error.code}: {error.detail}")
        await self.database.transact(lambda tx: dead_letters.mark_replayed(tx, row, now()))
        return Result(str(row_id), "replayed")

    async def _put_back(self, row: DeadLetterRow) -> None:
        original = dead_letters.original_of(row)
        if row.reason == DeadLetterReason.TOO_LARGE:
            raise Undeliverable("its body was cut: send it again, smaller", code=DeadLetterReason.TOO_LARGE)
        if row.source not in _CALLBACKS or original.exchange:
            await self.replayer.put_back(original)
            return
        report = _report(row.source, original.body)
        await self.publisher.publish(report, message_id=str(row.id), correlation_id=str(row.id))

    async def _discard(self, row_id: UUID) -> Result:
        if await self.database.transact(lambda tx: dead_letters.discard(tx, row_id)):
            return Result(str(row_id), "discarded")
        return Result(str(row_id), "failed", "it was discarded meanwhile")


async def find(database: Database, table: type[Any], prefix: str) -> UUID:
    """Return the id of the one row whose id begins like this.

    Raises:
        Rejected: none does, or several do.
    """
    digits = prefix.replace("-", "").lower()
    if not digits or len(digits) > len(UUID(int=0).hex) or not set(digits) <= set(string.hexdigits):
        raise Rejected(f"{prefix!r} is not an id or the beginning of one", code="unknown_id")
    found = await database.read(lambda tx: dead_letters.ids_from(tx, table, digits))
    if not found:
        raise Rejected(f"nothing has the id {prefix}", code="unknown_id")
    if len(found) > 1:
        raise Rejected(f"several ids begin with {prefix}: give more of it", code="ambiguous_id")
    return found[0]


def _report(path: str, body: bytes) -> GatewayReport:
    """Read a callback as the ingress does today.

    Raises:
        Undeliverable: it would be refused today too.
    """
    try:
        report: GatewayReport = _CALLBACKS[path].validate_python(json.loads(body))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
        raise Undeliverable(detail, code="invalid_callback") from error
    except (ValueError, RecursionError) as error:
        raise Undeliverable("the body is not JSON", code="invalid_callback") from error
    return report
