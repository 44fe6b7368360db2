"""Stops a process if continuing would do harm, with a sentence that gives the reason."""

import signal

import structlog

from service.errors import ConfigurationError

log = structlog.get_logger()


class Ending:
    """Whether this process is to stop, and the reason."""

    reason = ""
    """A sentence; empty while the process continues."""

    def because(self, error: ConfigurationError) -> None:
        """Stop the process, like a SIGTERM: messages in progress are finished. Its exit status will be 2."""
        if not self.reason:
            self.reason = error.detail
            log.error("ending", code=error.code, reason=error.detail)
            signal.raise_signal(signal.SIGTERM)
