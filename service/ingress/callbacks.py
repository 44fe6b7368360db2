"""The endpoints for the gateway. It tries once and waits 5 s, so they never use the database and answer in time."""

import asyncio
import time

from fastapi import APIRouter
from uuid_utils.compat import uuid7

from service import tracing
from service.domain.sending import backoff
from service.errors import BrokerUnavailable
from service.ingress.bodies import Accepted
from service.ingress.problems import responses
from service.messaging.publishing import Publisher
from whatsapp_qr_contracts.gateway import GatewayReport, Incoming, Webhook

_SECONDS = 4.5


def callbacks(publisher: Publisher) -> APIRouter:
    """Return the endpoints that the gateway calls."""
    router = APIRouter(prefix="/whatsapp-qr", tags=["Gateway callbacks"], responses=responses(400, 413, 503))

    @router.post("/webhook")
    async def webhook(body: Webhook) -> Accepted:
        """Accept a report about a session: `qr`, `connected`, `disconnected` or `receipt`.

        200 once the broker has it on disk, even for an unknown session.
        """
        await _publish(publisher, body)
        return Accepted()

    @router.post("/incoming")
    async def incoming(body: Incoming) -> Accepted:
        """Accept a customer's message. 200 once the broker has it on disk, even for an unknown session."""
        await _publish(publisher, body)
        return Accepted()

    return router


async def _publish(publisher: Publisher, report: GatewayReport) -> None:
    # One id for all attempts: an unconfirmed one may have arrived. Consumers detect repetitions by content anyway.
    report_id = str(uuid7())
    tracing.about(correlation_id=report_id, message_id=report_id, session_id=report.session_id)
    until = time.monotonic() + _SECONDS
    failures = 0
    while True:
        try:
            await publisher.publish(
                report,
                message_id=report_id,
                correlation_id=report_id,
                seconds=until - time.monotonic(),
            )
        except BrokerUnavailable:
            failures += 1
            pause = backoff(failures)
            if time.monotonic() + pause >= until:
                raise
            await asyncio.sleep(pause)
        else:
            return
