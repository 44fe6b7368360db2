"""The credentials of a callback for the ingress."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from standardwebhooks import Webhook

from service.simulator.store import Callback


@dataclass(frozen=True)
class Credentials:
    """The credentials that the ingress requires, if it does."""

    token: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)

    def headers(self, callback: Callback) -> dict[str, str]:
        """Return the headers of one attempt: signed anew at each, under the same id."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        if self.secret:
            now = datetime.now(UTC)
            # The position restarts with a new state; together with the time it is unique.
            callback_id = f"msg_{callback.due:.6f}_{callback.position}"
            headers |= {
                "webhook-id": callback_id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(self.secret).sign(callback_id, now, callback.body.decode()),
            }
        return headers
