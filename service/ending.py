"""Lets a process end by itself where going on would do harm, with a sentence that says why."""

import signal

import structlog

from service.errors import ConfigurationError

log = structlog.get_logger()


class Ending:
    """Whether this process is to end, and why."""

    reason = ""
    """A sentence; empty as long as it goes on."""

    def because(self, error: ConfigurationError) -> None:
        """End the process, as a SIGTERM would: what has begun is finished. Its exit status will be 2."""
        if not self.reason:
            self.reason = error.detail
            log.error("ending", code=error.code, reason=error.detail)
            signal.raise_signal(signal.SIGTERM)
