"""Logging: one line per event, text for people or JSON for machines, on standard error.

No line contains customers' messages, a number, a QR code or a key (see `privacy`). Tracebacks show the place and the
class of an error, without local variables, and its text only if that is known to contain no such data: most libraries
put values into it. The full text of the error that made a message a dead letter is in the dead letter.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, TextIO

import structlog

from service.errors import ConfigurationError, Unavailable

# FastStream would log two lines per message, and configures a logger of its own name when it is imported.
_QUIET = (
    "httpx",
    "httpcore",
    "aio_pika",
    "aiormq",
    "service.faststream",
    "aiosqlite",
    "asyncio",
    "alembic",
    "urllib3",
    "opentelemetry",
)
_TOLD = (Unavailable, ConfigurationError, OSError, AttributeError, TypeError, NameError, ImportError)
"""Errors whose text contains no values."""
_CHAIN = 10

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def configure(form: Literal["text", "json"], level: str) -> None:
    """Configure logging for this process.

    Args:
        form: `text` or `json`.
        level: the lowest level that is logged.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(lambda exc_info: "\n".join(traceback_lines(exc_info[1]))),
            structlog.processors.JSONRenderer(),
        ]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _quieten_libraries()


def traceback_lines(error: BaseException | None, depth: int = 0) -> Iterator[str]:
    """Yield the loggable lines of an error and of its causes, the first cause first."""
    if error is None or depth == _CHAIN:
        return
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from traceback_lines(cause, depth + 1)
    for line in traceback.format_tb(error.__traceback__):
        yield line.rstrip("\n")
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    yield f"{kind}: {error}" if isinstance(error, _TOLD) else kind
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from traceback_lines(one, depth + 1)


def _write_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    stream.write("\n".join(traceback_lines(exc_info[1])))


def _quieten_libraries() -> None:
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_only_the_first_line)
    once = _OncePerOutage()
    logging.getLogger("aiormq.connection").addFilter(once)
    logging.getLogger("aio_pika.robust_connection").addFilter(once)
    logging.getLogger("aio_pika.robust_connection").setLevel(logging.DEBUG)  # reports the reconnection at this level
    logging.getLogger("aio_pika.tools").addFilter(_no_end_of_a_lost_channel)


def _only_the_first_line(record: logging.LogRecord) -> bool:
    # The following lines describe the task and its error, with its text.
    record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def _no_end_of_a_lost_channel(record: logging.LogRecord) -> bool:
    # Each channel of a lost connection ends like this; all are made again with the connection.
    return "ChannelInvalidStateError" not in record.getMessage()


class _OncePerOutage(logging.Filter):
    """Logs once per outage, not at every attempt, that the broker is unavailable, and once that it is available again.

    It counts for all connections of the process together: after a reconnection, the same messages are logged again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "aiormq.connection":  # its caller gets the same error and logs it
            return not str(record.msg).startswith("error when creating transport")
        if self._told and str(record.msg).startswith("Connection made"):
            self._told.clear()
            structlog.get_logger("service.messaging").info("broker_is_back")
        if record.levelno < logging.WARNING or record.getMessage() in self._told:
            return False
        self._told.add(record.getMessage())
        return True
