"""AMQP field values in JSON and back, without loss: a value without a JSON form becomes an object with one `$` key."""

import base64
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

_MAX_DIGITS = 300


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    # An encoder of 1E+999999999 writes all its digits.
    if value.is_finite() and value.adjusted() > _MAX_DIGITS:
        raise ValueError("AMQP has no such decimal")
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda text: bytearray(base64.b64decode(text)),
    "$time": datetime.fromisoformat,
    "$decimal": _decimal,
    "$float": float,
    "$table": lambda items: {name: from_json(value) for name, value in items},
}


def to_json(value: Any) -> Any:
    """Return a value of an AMQP table in a form that JSON can hold."""
    match value:
        case dict() if any(name.startswith("$") for name in value):
            return {"$table": [[name, to_json(item)] for name, item in value.items()]}
        case dict():
            return {name: to_json(item) for name, item in value.items()}
        case list():
            return [to_json(item) for item in value]
        case _:
            return _scalar_to_json(value)


def _scalar_to_json(value: Any) -> Any:
    match value:
        case bytes() | bytearray():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"$time": value.isoformat()}
        case Decimal():
            return {"$decimal": str(value)}
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case _:
            return value


def from_json(value: Any) -> Any:
    """Return the value that `to_json` was given.

    Raises:
        ValueError: `to_json` never returned this.
    """
    match value:
        case dict() if len(value) == 1 and next(iter(value)) in _READ:
            ((form, content),) = value.items()
            try:
                return _READ[form](content)
            except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
                raise ValueError(f"this is not a value of the form {form}") from error
        case dict():
            return {name: from_json(item) for name, item in value.items()}
        case list():
            return [from_json(item) for item in value]
        case _:
            return value
