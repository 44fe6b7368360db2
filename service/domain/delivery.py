"""The order of delivery statuses: they only rise, but a later report of success replaces FAILED."""

from whatsapp_qr_contracts.message import DeliveryStatus

_RANK = {
    status: rank
    for rank, status in enumerate(
        (DeliveryStatus.PENDING, DeliveryStatus.SENT, DeliveryStatus.DELIVERED, DeliveryStatus.READ)
    )
}
_CAN_FAIL = frozenset({DeliveryStatus.PENDING, DeliveryStatus.SENT})


def raised(current: DeliveryStatus, reported: DeliveryStatus) -> DeliveryStatus | None:
    """Return the status after a report, or None if the report changes nothing."""
    if reported is DeliveryStatus.FAILED:
        return reported if current in _CAN_FAIL else None
    if current is DeliveryStatus.FAILED:
        return reported if reported is not DeliveryStatus.PENDING else None
    return reported if _RANK[reported] > _RANK[current] else None
