"""Wrong wall clocks; what counts from an arbitrary point, as `time.monotonic`, stays right."""

import datetime as dt
import importlib
import sys
import time
from types import ModuleType
from typing import Any

# The library checks the age of the gateway's signatures for the ingress.
_SKEWED = ("service", "whatsapp_qr_contracts", "standardwebhooks")
_right = time.time


def set_clocks_wrong(seconds: float) -> None:
    """Shift the wall clocks of this process by so many seconds."""
    importlib.import_module("tests.warm")  # the modules that are to be changed

    def wrong() -> float:
        return _right() + seconds

    time.time = wrong
    wrong_datetime = _wrong_datetime(dt.timedelta(seconds=seconds))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _SKEWED:
            _replace(module, wrong_datetime)


def _wrong_datetime(offset: dt.timedelta) -> type[dt.datetime]:
    """Return a class that makes and recognizes true datetimes, and only does not know what time it is."""

    class Alike(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, dt.datetime)

    class WrongDatetime(dt.datetime, metaclass=Alike):
        def __new__(cls, *given: Any, **named: Any) -> Any:
            return dt.datetime(*given, **named)  # noqa: DTZ001  # the caller says which zone

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + offset

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(dt.UTC).replace(tzinfo=None)

    return WrongDatetime


def _replace(module: ModuleType, wrong_datetime: type[dt.datetime]) -> None:
    for attribute, value in list(vars(module).items()):
        if value is dt.datetime:
            setattr(module, attribute, wrong_datetime)
        elif isinstance(value, type):
            make: Any = vars(value).get("__init__")
            if _right in (defaults := getattr(make, "__defaults__", None) or ()):
                make.__defaults__ = tuple(time.time if default is _right else default for default in defaults)
