"""Queues the gateway's reports, in the form of the public contract."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from service import tracing
from service.simulator.store import Callback, Store
from whatsapp_qr_contracts.gateway import (
    ConnectedData,
    DisconnectedData,
    GatewayConnected,
    GatewayDisconnected,
    GatewayMessage,
    GatewayQr,
    GatewayReceipt,
    GatewayReport,
    QrData,
    ReceiptData,
)

WEBHOOK = "/whatsapp-qr/webhook"
INCOMING = "/whatsapp-qr/incoming"


class Reports:
    """Stores callbacks and calls `wake(session_id)` for each. Call it inside the transaction of the reported change."""

    def __init__(self, store: Store, wake: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wake = wake
        self._clock = clock
        self.lost = False
        """Whether reports are dropped."""

    def qr(self, session_id: str, qr_code: str) -> None:
        """Report a QR code that waits to be scanned."""
        self._queue(GatewayQr(type="qr", session_id=session_id, data=QrData(qr_code=qr_code)))

    def connected(self, session_id: str, phone_number: str | None) -> None:
        """Report that the account is linked."""
        data = ConnectedData(phone_number=phone_number, connected_at=self._moment())
        self._queue(GatewayConnected(type="connected", session_id=session_id, data=data))

    def disconnected(self, session_id: str, reason: str | None = None) -> None:
        """Report that the link ended."""
        data = DisconnectedData(disconnected_at=self._moment(), reason=reason)
        self._queue(GatewayDisconnected(type="disconnected", session_id=session_id, data=data))

    def receipt(self, session_id: str, message_id: str, status: Literal["delivered", "read"], after: float) -> None:
        """Report a receipt of a sent message, `after` seconds from now."""
        data = ReceiptData(message_id=message_id, status=status, timestamp=int(self._clock() + after))
        self._queue(GatewayReceipt(type="receipt", session_id=session_id, data=data), after=after)

    def message(self, message: GatewayMessage, copies: int = 1) -> None:
        """Report a customer's message; the same callback is posted `copies` times at once."""
        self._queue(message, path=INCOMING, copies=copies)

    def _queue(self, report: GatewayReport, *, path: str = WEBHOOK, copies: int = 1, after: float = 0) -> None:
        if self.lost:
            return
        self._store.add_callback(
            Callback(
                session_id=report.session_id,
                path=path,
                body=report.model_dump_json(by_alias=True, exclude_none=True).encode(),
                copies=copies,
                due=self._clock() + after,
                traceparent=tracing.traceparent(),
            )
        )
        self._wake(report.session_id)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
