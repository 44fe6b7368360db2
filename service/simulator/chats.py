"""The messages between the service and the customers' phones."""

import secrets
import time
from collections.abc import Callable

from service.errors import GatewayError, GatewayRefused, Rejected
from service.simulator.faults import FailureKind, Faults
from service.simulator.reporting import Reports
from service.simulator.store import SentMessage, Session, Store
from whatsapp_qr_contracts.gateway import GatewayMessage
from whatsapp_qr_contracts.message import SessionStatus


def whatsapp_id() -> str:
    """Return a new message id in WhatsApp's form."""
    return "3EB0" + secrets.token_hex(9).upper()


class Chats:
    """Accepts the service's messages and reports customers' messages."""

    def __init__(
        self, store: Store, reports: Reports, receipt_delay: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._reports = reports
        self._receipt_delay = receipt_delay
        self._clock = clock

    def send(self, message: SentMessage, faults: Faults, failure: FailureKind | None = None) -> None:
        """Deliver a message to the recipient's phone; one that was accepted before is not delivered again.

        Raises:
            GatewayRefused: it was not accepted, with the contract's code.
            GatewayError: it was not accepted, because of a requested fault.
        """
        session = self._store.session(message.session_id)
        if session is None:
            detail = f"There is no session {message.session_id!r}. Start it with POST /init."
            raise GatewayRefused(detail, code="unknown_session")
        if self._store.was_sent(message.session_id, message.message_id):
            return
        _check(session, message, faults, failure)
        with self._store.transaction():
            self._store.add_sent(message)
            if faults.receipts:
                self._reports.receipt(session.session_id, message.message_id, "delivered", self._receipt_delay)
                self._reports.receipt(session.session_id, message.message_id, "read", 2 * self._receipt_delay)

    def sent(self, session_id: str | None = None, recipient: str | None = None) -> list[SentMessage]:
        """Return accepted messages, in order, of one session and to one recipient if they are given."""
        return self._store.sent(session_id, recipient)

    def receive(self, message: GatewayMessage, copies: int = 1) -> None:
        """Report a customer's message, `copies` times at once.

        Raises:
            Rejected: the session is unknown (`unknown_session`) or not connected (`not_connected`).
        """
        session = self._store.session(message.session_id)
        if session is None:
            detail = f"There is no session {message.session_id!r}."
            raise Rejected(detail, code="unknown_session")
        if session.status is not SessionStatus.CONNECTED:
            detail = f"No message can come in: the session is {session.status}."
            raise Rejected(detail, code="not_connected")
        with self._store.transaction():
            self._reports.message(message, copies)

    def waiting_callbacks(self) -> dict[str, int]:
        """Return how many callbacks the ingress has not accepted yet, for each session that has any."""
        return self._store.waiting_callbacks()


def _check(session: Session, message: SentMessage, faults: Faults, failure: FailureKind | None) -> None:
    if session.status is not SessionStatus.CONNECTED:
        detail = f"The session is {session.status}: no message can be sent."
        raise GatewayRefused(detail, code="not_connected")
    if message.recipient in faults.not_on_whatsapp:
        detail = f"{message.recipient} is not on WhatsApp."
        raise GatewayRefused(detail, code="not_on_whatsapp")
    match failure:
        case FailureKind.REFUSE:
            detail = "WhatsApp refused the message (a requested fault)."
            raise GatewayRefused(detail, code="refused")
        case FailureKind.RESTRICT:
            detail = "WhatsApp has restricted this account (a requested fault)."
            raise GatewayRefused(detail, code="restricted")
        case FailureKind.NOT_CONNECTED:
            detail = "The connection of the session is dead (a requested fault)."
            raise GatewayRefused(detail, code="not_connected")
        case FailureKind.ERROR:
            detail = "The gateway failed before sending (a requested fault)."
            raise GatewayError(detail)
