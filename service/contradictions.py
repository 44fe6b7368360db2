"""Settings that are valid individually but contradict each other: a sentence for each, with the change to make."""

from collections.abc import Iterator

from service.messaging.subscriptions import GRACE_SECONDS, LONGEST_PATIENCE
from service.settings import Settings

BROKER_CONSUMER_TIMEOUT = 1800.0
"""RabbitMQ closes a channel if a message is unacknowledged for longer: its default, in seconds."""


def contradictions(settings: Settings) -> Iterator[str]:
    """Yield the contradictions between settings; nothing if there are none."""
    yield from _unacknowledged_too_long(settings)
    if settings.stuck_after <= settings.gateway_timeout:
        yield (
            f"STUCK_AFTER={settings.stuck_after:g} and GATEWAY_TIMEOUT={settings.gateway_timeout:g}: one slow send"
            " would count as failing sends. STUCK_AFTER must be longer"
        )
    if settings.send_expiry <= settings.gateway_timeout:
        yield (
            f"SEND_EXPIRY={settings.send_expiry:g} and GATEWAY_TIMEOUT={settings.gateway_timeout:g}: a message would"
            " expire before its first attempt has ended. SEND_EXPIRY must be longer"
        )
    pause = (1 + settings.send_jitter) / settings.send_rate
    if settings.send_expiry <= pause:
        yield (
            f"SEND_EXPIRY={settings.send_expiry:g} and SEND_RATE={settings.send_rate:g}: between two messages of a"
            f" session are up to {pause:g} s, and the second would expire meanwhile. Raise one of them"
        )
    if settings.internal_port == settings.http_port:
        yield f"HTTP_PORT and INTERNAL_PORT are both {settings.http_port}: they must differ"
    if settings.webhook_token is not None and settings.webhook_token in settings.api_keys:
        yield (
            "WEBHOOK_TOKEN is one of API_KEYS: any caller could report messages as if it were the gateway. Make another"
            " with: openssl rand -hex 24"
        )


def _unacknowledged_too_long(settings: Settings) -> Iterator[str]:
    seconds = settings.gateway_timeout
    # Each command or report of a session waits for the previous one. The longest ones ask the gateway (half of
    # GATEWAY_TIMEOUT), end a pairing (as much) and open a session (0.8), or ask three times with pauses of 4 s in all.
    each = max(1.8 * seconds, 1.5 * seconds + 4)
    retried = max(settings.release_after, LONGEST_PATIENCE)  # RELEASE_AFTER is doubled while a release does not help
    most = int((BROKER_CONSUMER_TIMEOUT - retried - GRACE_SECONDS) / each)
    if settings.prefetch > most:
        remedy = f"Set PREFETCH to at most {most}" if most > 0 else "Lower GATEWAY_TIMEOUT or RELEASE_AFTER"
        yield (
            f"PREFETCH={settings.prefetch}, GATEWAY_TIMEOUT={seconds:g} and RELEASE_AFTER={settings.release_after:g}:"
            f" so many reports of one session may take longer than {BROKER_CONSUMER_TIMEOUT:.0f} s, after which"
            f" RabbitMQ closes the channel of a consumer that has not acknowledged them. {remedy}"
        )
