"""The gateway's HTTP contract, checked on every gateway that we have. Another one joins by a line in GATEWAYS."""

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.contract.gateways import (
    CHATBOT,
    CUSTOMER,
    OTHER_SESSION,
    PHONE,
    SESSION,
    Gateway,
    SimulatedGateway,
    connect,
    decoded,
    initialize,
    send,
    status_of,
)

GATEWAYS: dict[str, Callable[[], Gateway]] = {"simulator": SimulatedGateway}


@pytest.fixture(params=GATEWAYS)
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    gateway = GATEWAYS[request.param]()
    yield gateway
    gateway.close()
    assert not gateway.receiver.invalid


def test_health_tells_status_and_time(gateway: Gateway) -> None:
    answer = gateway.client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert datetime.fromisoformat(answer.json()["timestamp"]).tzinfo


def test_init_answers_at_once_and_a_qr_code_follows(gateway: Gateway) -> None:
    answer = gateway.client.post("/init", json={"sessionId": SESSION, "chatbotId": CHATBOT})
    assert answer.status_code == 200
    assert answer.json()["success"] is True
    assert answer.json()["sessionId"] == SESSION
    assert answer.json()["message"]
    [report] = gateway.receiver.wait_for("qr")
    assert len(decoded(report.data.qr_code)) == 1


def test_the_qr_code_can_be_read_again(gateway: Gateway) -> None:
    qr_code = initialize(gateway)
    answer = gateway.client.get(f"/qr-code/{SESSION}")
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "sessionId": SESSION, "qrCode": qr_code}
    session = gateway.client.get(f"/status/{SESSION}").json()["session"]
    assert session["status"] == "QR_READY"
    assert session.get("qrCode", qr_code) == qr_code


def test_every_session_has_a_qr_code_of_its_own(gateway: Gateway) -> None:
    assert decoded(initialize(gateway)) != decoded(initialize(gateway, OTHER_SESSION))


def test_scanning_connects_and_is_reported_with_the_number(gateway: Gateway) -> None:
    initialize(gateway)
    gateway.scan(SESSION, PHONE)
    [report] = gateway.receiver.wait_for("connected")
    assert report.data.phone_number == PHONE
    assert report.data.connected_at is not None
    session = gateway.client.get(f"/status/{SESSION}").json()["session"]
    assert session == {"sessionId": SESSION, "status": "CONNECTED", "phoneNumber": PHONE}
    assert gateway.client.get(f"/qr-code/{SESSION}").status_code == 404


def test_starting_a_running_session_again_changes_nothing(gateway: Gateway) -> None:
    body = {"sessionId": SESSION, "chatbotId": CHATBOT}
    qr_code = initialize(gateway)
    assert gateway.client.post("/init", json=body).status_code == 200
    assert gateway.client.get(f"/qr-code/{SESSION}").json()["qrCode"] == qr_code
    gateway.scan(SESSION, PHONE)
    gateway.receiver.wait_for("connected")
    assert gateway.client.post("/init", json=body).status_code == 200
    assert status_of(gateway) == "CONNECTED"
    gateway.customer_writes(SESSION, **{"from": CUSTOMER, "message": "marks the end"})
    gateway.receiver.wait_for("message")
    assert [report.name for report in gateway.receiver.accepted] == [
        "gateway.qr",
        "gateway.connected",
        "gateway.message",
    ]


@pytest.mark.parametrize("path", ["/status/nobody", "/qr-code/nobody"])
def test_an_unknown_session_is_not_found(gateway: Gateway, path: str) -> None:
    answer = gateway.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["success"] is False
    assert answer.json()["error"]


def test_all_sessions_are_listed(gateway: Gateway) -> None:
    assert gateway.client.get("/sessions").json() == {"success": True, "sessions": []}
    initialize(gateway)
    connect(gateway, OTHER_SESSION)
    listed = gateway.client.get("/sessions").json()["sessions"]
    assert {session["sessionId"]: session["status"] for session in listed} == {
        SESSION: "QR_READY",
        OTHER_SESSION: "CONNECTED",
    }


def test_a_message_is_sent_with_the_id_given_and_its_receipts_follow(gateway: Gateway) -> None:
    connect(gateway)
    answer = send(gateway, messageId="3EB0AAAAAAAAAAAAAAAAAA")
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "messageId": "3EB0AAAAAAAAAAAAAAAAAA"}
    receipts = gateway.receiver.wait_for("receipt", 2)
    assert [(receipt.data.message_id, receipt.data.status) for receipt in receipts] == [
        ("3EB0AAAAAAAAAAAAAAAAAA", "delivered"),
        ("3EB0AAAAAAAAAAAAAAAAAA", "read"),
    ]
    assert all(receipt.data.timestamp for receipt in receipts)


def test_a_message_without_id_gets_one_that_its_receipts_carry(gateway: Gateway) -> None:
    connect(gateway)
    first, second = (send(gateway).json()["messageId"] for _ in range(2))
    assert first
    assert first != second
    receipts = gateway.receiver.wait_for("receipt", 4)
    assert {receipt.data.message_id for receipt in receipts} == {first, second}


def test_the_same_message_id_again_has_the_same_answer_and_one_effect(gateway: Gateway) -> None:
    connect(gateway)
    answers = [send(gateway, messageId="3EB0BBBBBBBBBBBBBBBBBB") for _ in range(3)]
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
    send(gateway, messageId="3EB0CCCCCCCCCCCCCCCCCC")
    gateway.receiver.wait_until(
        lambda: any(
            receipt.data.message_id == "3EB0CCCCCCCCCCCCCCCCCC" and receipt.data.status == "read"
            for receipt in gateway.receiver.of("receipt")
        )
    )
    assert len(gateway.receiver.of("receipt")) == 4


def test_an_unknown_session_cannot_send(gateway: Gateway) -> None:
    answer = send(gateway, sessionId="nobody")
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert answer.json()["error"]
    assert answer.json()["code"] == "unknown_session"


def test_a_session_that_is_not_connected_cannot_send(gateway: Gateway) -> None:
    initialize(gateway)
    answer = send(gateway)
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert answer.json()["code"] == "not_connected"


def test_disconnect_ends_the_session_and_is_reported(gateway: Gateway) -> None:
    connect(gateway)
    for _ in range(2):
        answer = gateway.client.post("/disconnect", json={"sessionId": SESSION})
        assert answer.status_code == 200
        assert answer.json()["success"] is True
        assert answer.json()["sessionId"] == SESSION
        assert answer.json()["message"]
    [report] = gateway.receiver.wait_for("disconnected")
    assert report.data.disconnected_at is not None
    assert send(gateway).status_code == 400
    status = gateway.client.get(f"/status/{SESSION}")
    assert status.status_code == 404 or status.json()["session"]["status"] == "DISCONNECTED"


def test_after_disconnect_a_new_qr_code_links_another_phone(gateway: Gateway) -> None:
    connect(gateway)
    gateway.client.post("/disconnect", json={"sessionId": SESSION})
    gateway.receiver.wait_for("disconnected")
    connect(gateway, phone_number="5491199999999")
    assert [report.data.phone_number for report in gateway.receiver.of("connected")] == [PHONE, "5491199999999"]


def test_a_logout_on_the_phone_is_reported_with_its_reason(gateway: Gateway) -> None:
    connect(gateway)
    gateway.unlink(SESSION)
    [report] = gateway.receiver.wait_for("disconnected")
    assert report.data.reason == "logged_out"
    assert status_of(gateway) == "DISCONNECTED"


def test_a_customers_message_comes_in_with_everything_about_it(gateway: Gateway) -> None:
    connect(gateway)
    message_id = gateway.customer_writes(SESSION, **{"from": CUSTOMER, "message": "¿Hola? 👋", "pushName": "Ana"})
    [report] = gateway.receiver.wait_for("message")
    assert report.session_id == SESSION
    assert report.sender.startswith(CUSTOMER)
    assert report.message == "¿Hola? 👋"
    assert report.message_id == message_id
    assert report.push_name == "Ana"
    assert report.timestamp > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/init", {"sessionId": SESSION}),
        ("/send", {"sessionId": SESSION, "message": "to nobody"}),
        ("/disconnect", {}),
    ],
)
def test_a_request_that_lacks_a_field_is_refused(gateway: Gateway, path: str, body: dict[str, str]) -> None:
    answer = gateway.client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert answer.json()["error"]
