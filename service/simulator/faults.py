"""Faults that people and tests switch on."""

import secrets
from enum import StrEnum

from pydantic import ConfigDict, Field

from whatsapp_qr_contracts.addresses import Address
from whatsapp_qr_contracts.message import WireModel

_dice = secrets.SystemRandom()


class FailureKind(StrEnum):
    """The way in which a send fails."""

    REFUSE = "refuse"
    """400 with code `refused`; not sent."""
    RESTRICT = "restrict"
    """400 with code `restricted`, as for an account that WhatsApp has limited; not sent."""
    NOT_CONNECTED = "not_connected"
    """400 with code `not_connected`, regardless of /status; not sent."""
    ERROR = "error"
    """500; not sent."""
    TIMEOUT_AFTER_ACCEPT = "timeout_after_accept"
    """Sent, and no answer for longer than any client waits."""
    DROP_AFTER_ACCEPT = "drop_after_accept"
    """Sent, and the connection closed without an answer."""


class Faults(WireModel):
    """Faults of POST /send, POST /init and the callbacks; by default there are none."""

    model_config = ConfigDict(extra="forbid")

    latency: float = Field(default=0, ge=0, le=600, description="Seconds before a send is processed")
    init_latency: float = Field(
        default=0, ge=0, le=600, description="Seconds before /init answers; the session starts at once"
    )
    failure_rate: float = Field(default=0, ge=0, le=1, description="Share of sends that fail")
    failure_kind: FailureKind = Field(default=FailureKind.ERROR, description="How they fail")
    answer_latency: float = Field(
        default=0,
        ge=0,
        le=600,
        description="Seconds before an accepted send is answered; its receipts do not wait",
    )
    own_ids: bool = Field(default=False, description="Messages get ids of the gateway's own, not the given ones")
    receipts: bool = Field(default=True, description="Whether `delivered` and `read` are reported")
    not_on_whatsapp: frozenset[Address] = Field(default=frozenset(), description="Numbers that are not on WhatsApp")

    loading: frozenset[str] = Field(
        default=frozenset(),
        description="Sessions that are not known yet, as after a restart; /init of one is a second login, which ends "
        "the first: `replaced`",
    )
    no_qr_code: bool = Field(default=False, description="Sessions that are started stay CONNECTING for ever")
    lose_callbacks: bool = Field(default=False, description="Nothing is reported by callbacks")

    def strike(self) -> FailureKind | None:
        """Return at random how one send fails, or None if it succeeds."""
        return self.failure_kind if _dice.random() < self.failure_rate else None
