"""Logging: one line per thing that happened, text for people or JSON for machines, on standard error.

Tracebacks come without local variables: those hold what customers write.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.tracebacks import ExceptionDictTransformer

# FastStream would log two lines per message, and sets up a logger named like itself when it is imported.
_QUIET = ("httpx", "httpcore", "aio_pika", "aiormq", "service.faststream", "aiosqlite", "asyncio", "alembic")


def configure(form: Literal["text", "json"], level: str) -> None:
    """Set up logging for this process.

    Args:
        form: `text` or `json`.
        level: the least level that is logged.
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
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
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


def _quieten_libraries() -> None:
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    once = _OncePerOutage()
    logging.getLogger("aiormq.connection").addFilter(once)
    logging.getLogger("aio_pika.robust_connection").addFilter(once)
    logging.getLogger("aio_pika.robust_connection").setLevel(logging.DEBUG)  # it tells there that it is back


class _OncePerOutage(logging.Filter):
    """Lets the AMQP libraries tell once, not at every attempt, that the broker is away; and tells that it is back.

    It counts for all connections of the process together: what was told is told again once one has been made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "aiormq.connection":  # it raises the same error to its caller, and that is what is told
            return not str(record.msg).startswith("error when creating transport")
        if self._told and str(record.msg).startswith("Connection made"):
            self._told.clear()
            structlog.get_logger("service.messaging").info("broker_is_back")
        if record.levelno < logging.WARNING or record.getMessage() in self._told:
            return False
        self._told.add(record.getMessage())
        return True
