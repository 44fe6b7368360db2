"""Rows as plain values, many at a time: one statement locks and reads them, one writes the changed ones.

Batches of messages use this module. The ORM, which tracks each row separately, takes several times as long.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import ARRAY, ColumnElement, Select, Table, Update, any_, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from service.persistence.columns import DatabaseClock
from service.persistence.database import on_sqlite

R = TypeVar("R", bound=SQLModel)


def table_of(row: type[SQLModel]) -> Table:
    """Return the table of a row's class."""
    return row.__table__  # type: ignore[attr-defined, no-any-return]


def among(column: ColumnElement[Any], name: str, *, sqlite: bool) -> ColumnElement[bool]:
    """Return the condition that a column has one of the values of a list parameter.

    On PostgreSQL the parameter is one array, so that the statement is the same, and prepared once, for any number of
    values.
    """
    if sqlite:
        return column.in_(bindparam(name, expanding=True))
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


class Records(Generic[R]):
    """Rows of one table, in one transaction.

    Args:
        kind: the class of the plain values.
        row: the class of the table's rows.
    """

    def __init__(self, kind: type[R], row: type[R]) -> None:
        self._kind, self._table = kind, table_of(row)
        [self._key] = (column.name for column in self._table.primary_key)
        self._read: list[tuple[R, dict[str, Any]]] = []
        self._new: list[R] = []

    @property
    def all(self) -> list[R]:
        """The rows that were read."""
        return [record for record, _ in self._read]

    async def lock(self, tx: AsyncSession, values: Collection[Any], *, by: str | None = None) -> list[R]:
        """Lock the rows that have one of these values in the column `by`, or as primary key, and return them.

        They are locked in the order of their primary keys, so that there are no deadlocks.
        """
        if not values:
            return []
        statement = _locking(self._table, by or self._key, self._key, sqlite=on_sqlite(tx))
        found = await (await tx.connection()).execute(statement, {"given": list(values)})
        return [self.read(row) for row in found.mappings()]

    def read(self, row: Mapping[Any, Any]) -> R:
        """Return a row that another statement has read and locked."""
        record = self._kind(**row)
        self._read.append((record, dict(record.__dict__)))
        return record

    def add(self, record: R) -> None:
        """Add a new row."""
        self._new.append(record)

    async def write(self, tx: AsyncSession) -> None:
        """Insert the new rows, and update those that have changed since they were read."""
        connection = await tx.connection()
        if self._new:
            columns = _inserted(self._table)
            rows = [{name: record.__dict__[name] for name in columns} for record in self._new]
            await connection.execute(self._table.insert(), rows)
        changed: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for record, before in self._read:
            values = {name: value for name, value in record.__dict__.items() if value is not before[name]}
            clocks = tuple(name for name, value in values.items() if isinstance(value, DatabaseClock))
            if values:
                given = {name: value for name, value in values.items() if name not in clocks}
                changed[clocks, tuple(given)].append({"key": before[self._key], **given})
        for (clocks, _), some in changed.items():
            await connection.execute(_updating(self._table, self._key, clocks), some)
        self._new, self._read = [], [(record, dict(record.__dict__)) for record, _ in self._read]


@cache
def _locking(table: Table, by: str, key: str, *, sqlite: bool) -> Select[Any]:
    return select(table).where(among(table.c[by], "given", sqlite=sqlite)).order_by(table.c[key]).with_for_update()


@cache
def _updating(table: Table, key: str, clocks: tuple[str, ...]) -> Update:
    statement = update(table).where(table.c[key] == bindparam("key"))
    return statement.values(dict.fromkeys(clocks, DatabaseClock())) if clocks else statement


@cache
def _inserted(table: Table) -> tuple[str, ...]:
    """Return the columns that an insert sets; the database's clock writes the others."""
    return tuple(
        column.name
        for column in table.c
        if column.default is None or not isinstance(getattr(column.default, "arg", None), DatabaseClock)
    )
