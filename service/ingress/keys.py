"""Authorization: a caller needs a key; if none is configured, only this machine, except for web pages open on it.

Only decisions, based on the request; `guard` applies them.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from standardwebhooks import Webhook, WebhookVerificationError
from starlette.datastructures import Headers

from service.ingress.problems import Problem
from service.loopback import fault_of, is_forwarded, is_loopback

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Keys:
    """The configured credentials. None of them is shown if this object is printed."""

    api: tuple[str, ...] = field(default=(), repr=False)
    webhook_token: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    def admit_call(self, headers: Headers, version: str) -> None:
        """Accept a call of an HTTP version, or raise the Problem that answers it."""
        if not self.api:
            if is_forwarded(headers, version):
                detail = "a proxy forwarded this, and without API_KEYS only this machine is let in: set API_KEYS"
                raise Problem(403, "forwarded", detail)
            _refuse_web_pages(headers, instead="API_KEYS")
        elif not _one_of([*_bearers(headers), *headers.getlist("x-api-key")], self.api):
            detail = "send a key, one of API_KEYS, as `Authorization: Bearer <key>` or as `X-API-Key: <key>`"
            raise Problem(401, "unauthorized", detail, _CHALLENGE)

    def admit_callback(self, headers: Headers, peer: str | None, body: bytes, version: str) -> None:
        """Accept a callback of the gateway, or raise the Problem that answers it."""
        tokens = [self.webhook_token] if self.webhook_token else []
        if not tokens and not self.webhook_secret:
            _refuse_other_machines(headers, peer, version)
            _refuse_web_pages(headers, instead="WEBHOOK_TOKEN or WEBHOOK_SECRET")
        elif not _one_of(_bearers(headers), tokens) and not self._is_signed(headers, body):
            wanted = ["send WEBHOOK_TOKEN as `Authorization: Bearer <token>`"] if tokens else []
            wanted += (
                ["sign it, within 5 minutes, with WEBHOOK_SECRET (Standard Webhooks)"] if self.webhook_secret else []
            )
            raise Problem(401, "unauthorized", " or ".join(wanted), _CHALLENGE)

    def needs_body(self, headers: Headers) -> bool:
        """Return whether the body of a callback is needed: strangers must not make us read it."""
        return self.webhook_secret is not None and "webhook-signature" in headers

    def _is_signed(self, headers: Headers, body: bytes) -> bool:
        if self.webhook_secret is None:
            return False
        try:
            Webhook(self.webhook_secret).verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError):  # ValueError: invalid base64, invalid UTF-8, no comma
            return False
        return True


def _one_of(given: Iterable[str], keys: Iterable[str]) -> bool:
    # Bytes, because texts must be ASCII; and all of them, so that the duration reveals nothing.
    wanted = [key.encode() for key in keys]
    return sum(hmac.compare_digest(one.encode("latin-1"), key) for one in given for key in wanted) > 0


def _bearers(headers: Headers) -> list[str]:
    split = (value.strip().partition(" ") for value in headers.getlist("authorization"))
    return [token.strip() for scheme, _, token in split if scheme.lower() == "bearer"]


def _refuse_other_machines(headers: Headers, peer: str | None, version: str) -> None:
    forwarded = is_forwarded(headers, version)
    if forwarded or peer is None or not is_loopback(peer):
        passed_on = ", forwarded by a proxy" if forwarded else ""
        raise Problem(
            403,
            "callback_from_elsewhere",
            f"this comes from another machine{passed_on}: set WEBHOOK_TOKEN or WEBHOOK_SECRET, here and at the gateway",
        )


def _refuse_web_pages(headers: Headers, instead: str) -> None:
    if fault := fault_of(headers):
        code, detail = fault
        raise Problem(403, code, f"{detail}; to allow it set {instead}")
