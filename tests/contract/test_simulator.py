"""What the simulator adds to the contract: phones to play with, faults, callbacks that do not get lost, a memory."""

import http.client
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from service.simulator import callbacks
from service.simulator.signing import Credentials
from tests.contract.gateways import (
    BREAK_OFF,
    CHATBOT,
    CUSTOMER,
    OTHER_SESSION,
    PATIENCE,
    PHONE,
    SESSION,
    SimulatedGateway,
    connect,
    decoded,
    initialize,
    send,
    status_of,
)
from whatsapp_qr_contracts.gateway import GatewayReport

TOKEN, SECRET = "t" * 48, "whsec_" + "c2VjcmV0" * 5
MESSAGE_ID = "3EB0AAAAAAAAAAAAAAAAAA"
HTTP_SERVERS = ["h11", *(["httptools"] if importlib.util.find_spec("httptools") else [])]


@pytest.fixture
def simulator() -> Iterator[SimulatedGateway]:
    with SimulatedGateway() as simulator:
        yield simulator


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes callbacks come again soon."""
    monkeypatch.setattr(callbacks, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(callbacks, "_LONGEST_PAUSE", 0.05)


def customers_write(simulator: SimulatedGateway, *texts: str, session_id: str = SESSION) -> None:
    for text in texts:
        simulator.customer_writes(session_id, **{"from": CUSTOMER, "message": text})


def texts_of(reports: list[Any]) -> list[str]:
    return [report.message for report in reports]


def refused(*refusals: int, kind: str = "gateway.message", session_id: str = SESSION) -> Callable[[GatewayReport], int]:
    """Return an answer that gives these statuses to the reports of one kind and session first, then accepts."""
    waiting = list(refusals)

    def answer(report: GatewayReport) -> int:
        return waiting.pop(0) if waiting and report.name == kind and report.session_id == session_id else 200

    return answer


class TestPairing:
    def test_codes_are_renewed_and_given_up_in_the_end(self) -> None:
        with SimulatedGateway(qr_seconds=0.05, qr_limit=3) as simulator:
            initialize(simulator)
            [report] = simulator.receiver.wait_for("disconnected")
            assert report.data.reason == "qr_expired"
            texts = [decoded(report.data.qr_code) for report in simulator.receiver.of("qr")]
            assert len({text for [text] in texts}) == 3
            assert status_of(simulator) == "DISCONNECTED"
            assert simulator.client.get(f"/qr-code/{SESSION}").status_code == 404

    def test_an_expired_pairing_can_be_started_again(self) -> None:
        with SimulatedGateway(qr_seconds=0.05, qr_limit=1) as simulator:
            initialize(simulator)
            simulator.receiver.wait_for("disconnected")
            initialize(simulator)

    @pytest.mark.parametrize("state", ["connecting", "connected"])
    def test_without_a_qr_code_nothing_can_be_scanned(self, state: str) -> None:
        with SimulatedGateway(connecting_seconds=60 if state == "connecting" else 0) as simulator:
            if state == "connecting":
                simulator.client.post("/init", json={"sessionId": SESSION, "chatbotId": CHATBOT})
            else:
                connect(simulator)
            answer = simulator.client.post(f"/simulator/sessions/{SESSION}/scan", json={"phoneNumber": PHONE})
            assert answer.status_code == 409
            assert "no QR code" in answer.json()["error"]

    def test_a_scan_waits_for_the_qr_code_where_asked_to(self) -> None:
        with SimulatedGateway(connecting_seconds=0.5) as simulator:
            simulator.client.post("/init", json={"sessionId": SESSION, "chatbotId": CHATBOT})
            simulator.control("POST", f"/sessions/{SESSION}/scan?wait=10", phoneNumber=PHONE)
            assert status_of(simulator) == "CONNECTED"

    def test_a_customer_sees_his_answer_and_none_of_the_earlier_ones(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        send(simulator, message="too early")
        with ThreadPoolExecutor(1) as pool:
            ask = {"from": CUSTOMER, "message": "hello?"}
            asking = pool.submit(simulator.control, "POST", f"/sessions/{SESSION}/customers?wait=10", **ask)
            simulator.receiver.wait_for("message")
            send(simulator, message="here I am")
            assert asking.result()["answers"] == ["here I am"]
            assert simulator.control("POST", f"/sessions/{SESSION}/customers", **ask)["answers"] == []

    def test_a_lost_connection_comes_back_without_a_qr_code(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("POST", f"/sessions/{SESSION}/drop")
        [report] = simulator.receiver.wait_for("disconnected")
        assert report.data.reason is None
        assert send(simulator).json()["code"] == "not_connected"
        simulator.control("POST", f"/sessions/{SESSION}/reconnect")
        simulator.receiver.wait_for("connected", 2)
        assert send(simulator).status_code == 200
        assert len(simulator.receiver.of("qr")) == 1

    def test_init_after_a_lost_connection_finds_the_phone_still_linked(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("POST", f"/sessions/{SESSION}/drop")
        simulator.client.post("/init", json={"sessionId": SESSION, "chatbotId": CHATBOT})
        assert simulator.receiver.wait_for("connected", 2)[-1].data.phone_number == PHONE
        assert len(simulator.receiver.of("qr")) == 1

    @pytest.mark.parametrize("action", ["unlink", "drop", "reconnect"])
    def test_without_a_linked_phone_nothing_can_be_lost(self, simulator: SimulatedGateway, action: str) -> None:
        initialize(simulator)
        answer = simulator.client.post(f"/simulator/sessions/{SESSION}/{action}")
        assert answer.status_code == 409
        assert "QR_READY" in answer.json()["error"]

    def test_a_forgotten_session_is_unknown_and_nobody_is_told(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        connect(simulator, OTHER_SESSION)
        simulator.control("POST", "/forget", sessionId=SESSION)
        assert simulator.client.get(f"/status/{SESSION}").status_code == 404
        assert send(simulator).json()["code"] == "unknown_session"
        customers_write(simulator, "marks the end", session_id=OTHER_SESSION)
        simulator.receiver.wait_for("message", session_id=OTHER_SESSION)
        assert SESSION not in simulator.control("GET", "/callbacks")["waiting"]
        assert not simulator.receiver.of("disconnected")

    def test_all_sessions_may_be_forgotten_at_once(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        connect(simulator, OTHER_SESSION)
        simulator.client.post("/simulator/forget", json={})
        assert simulator.client.get("/sessions").json()["sessions"] == []

    def test_a_session_may_never_show_a_qr_code(self, simulator: SimulatedGateway) -> None:
        body = {"sessionId": SESSION, "chatbotId": CHATBOT}
        simulator.control("PUT", "/faults", noQrCode=True)
        assert simulator.client.post("/init", json=body).status_code == 200
        simulator.control("PUT", "/faults", noQrCode=False)
        initialize(simulator, OTHER_SESSION)
        assert simulator.client.get(f"/status/{SESSION}").json()["session"]["status"] == "CONNECTING"
        simulator.client.post("/disconnect", json={"sessionId": SESSION})
        initialize(simulator)

    def test_callbacks_may_be_lost(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("PUT", "/faults", loseCallbacks=True)
        simulator.control("POST", f"/sessions/{SESSION}/drop")
        simulator.control("PUT", "/faults", loseCallbacks=False)
        simulator.control("POST", f"/sessions/{SESSION}/reconnect")
        simulator.receiver.wait_for("connected", 2)
        assert not simulator.receiver.of("disconnected")


class TestCustomers:
    def test_a_message_may_be_repeated_exactly(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.customer_writes(SESSION, **{"from": CUSTOMER, "message": "again", "messageId": "X", "repeat": 5})
        reports = simulator.receiver.wait_for("message", 5)
        assert all(report == reports[0] for report in reports)
        assert reports[0].message_id == "X"

    def test_a_picture_may_come_without_text(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.customer_writes(SESSION, **{"from": f"{CUSTOMER}:7@s.whatsapp.net", "message": "", "type": "image"})
        [report] = simulator.receiver.wait_for("message")
        assert (report.type, report.message, report.sender) == ("image", "", f"{CUSTOMER}:7@s.whatsapp.net")

    def test_a_text_may_not_be_empty(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        answer = simulator.client.post(
            f"/simulator/sessions/{SESSION}/customers", json={"from": CUSTOMER, "message": ""}
        )
        assert answer.status_code == 400
        assert "message may be empty only" in answer.json()["error"]

    def test_nobody_can_write_to_a_session_that_is_not_connected(self, simulator: SimulatedGateway) -> None:
        initialize(simulator)
        body = {"from": CUSTOMER, "message": "hello"}
        assert simulator.client.post(f"/simulator/sessions/{SESSION}/customers", json=body).status_code == 409
        assert simulator.client.post("/simulator/sessions/nobody/customers", json=body).status_code == 404


class TestFaults:
    def test_what_was_sent_is_listed_in_order(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        connect(simulator, OTHER_SESSION)
        send(simulator, message="one", to=f"{CUSTOMER}@s.whatsapp.net", messageId=MESSAGE_ID)
        send(simulator, message="two", to="5491187654321")
        send(simulator, message="three", sessionId=OTHER_SESSION)
        assert [sent["message"] for sent in simulator.sent()] == ["one", "two", "three"]
        assert [sent["message"] for sent in simulator.sent(to=CUSTOMER)] == ["one", "three"]
        [first, _] = simulator.sent(sessionId=SESSION)
        assert first.pop("sentAt")
        assert first == {"messageId": MESSAGE_ID, "sessionId": SESSION, "to": CUSTOMER, "message": "one"}

    def test_concurrent_sends_with_one_id_are_sent_once(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: send(simulator, messageId=MESSAGE_ID), range(24)))
        assert {answer.text for answer in answers} == {answers[0].text}
        assert len(simulator.sent()) == 1

    @pytest.mark.parametrize(
        ("kind", "status", "code"),
        [
            ("refuse", 400, "refused"),
            ("restrict", 400, "restricted"),
            ("not_connected", 400, "not_connected"),
            ("error", 500, None),
        ],
    )
    def test_a_failure_before_accepting_sends_nothing(
        self, simulator: SimulatedGateway, kind: str, status: int, code: str | None
    ) -> None:
        connect(simulator)
        simulator.control("PUT", "/faults", failureRate=1, failureKind=kind)
        answer = send(simulator, messageId=MESSAGE_ID)
        assert (answer.status_code, answer.json().get("code")) == (status, code)
        assert answer.json()["success"] is False
        assert simulator.sent() == []
        simulator.control("PUT", "/faults", failureRate=0)
        assert send(simulator, messageId=MESSAGE_ID).status_code == 200

    @pytest.mark.parametrize("server", HTTP_SERVERS)
    def test_a_connection_dropped_after_accepting_is_really_dropped(self, server: str) -> None:
        with SimulatedGateway(server={"http": server}) as simulator:
            connect(simulator)
            simulator.control("PUT", "/faults", failureRate=1, failureKind="drop_after_accept")
            body = {"sessionId": SESSION, "to": CUSTOMER, "message": "hello", "messageId": MESSAGE_ID}
            with (
                pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
                simulator.client.stream("POST", "/send", json=body),
            ):
                pytest.fail("not even the headers of an answer may come")
            assert [sent["messageId"] for sent in simulator.sent()] == [MESSAGE_ID]
            simulator.control("PUT", "/faults", failureRate=0)
            assert send(simulator, messageId=MESSAGE_ID).json()["messageId"] == MESSAGE_ID
            assert len(simulator.sent()) == 1
            assert len(simulator.receiver.wait_for("receipt", 2)) == 2

    def test_a_time_out_after_accepting_ends_with_the_client(self) -> None:
        with SimulatedGateway(hold_seconds=600) as simulator:
            connect(simulator)
            simulator.control("PUT", "/faults", failureRate=1, failureKind="timeout_after_accept")
            url = httpx.URL(simulator.served.url)
            client = http.client.HTTPConnection(url.host, url.port or 0, timeout=PATIENCE)
            body = {"sessionId": SESSION, "to": CUSTOMER, "message": "hello", "messageId": MESSAGE_ID}
            client.request("POST", "/send", json.dumps(body), {"content-type": "application/json"})
            deadline = time.monotonic() + PATIENCE
            while not (sent := simulator.sent()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            client.sock.settimeout(0.3)  # it was sent: now an answer would come
            with pytest.raises(TimeoutError):
                client.getresponse()
            client.close()
            assert len(sent) == 1
            # Leaving the block stops the server, which waits for whatever it is still answering.

    def test_latency_delays_sends_and_nothing_else(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("PUT", "/faults", latency=1)

        def seconds(call: Callable[[], httpx.Response]) -> float:
            begin = time.monotonic()
            assert call().status_code == 200
            return time.monotonic() - begin

        assert seconds(lambda: send(simulator)) >= 1
        # One of many may be held up by a busy machine; what is delayed would always be late.
        assert any(seconds(lambda: simulator.client.get("/health")) < 1 for _ in range(20))

    def test_receipts_can_be_left_out(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("PUT", "/faults", receipts=False)
        send(simulator, messageId="silent")
        simulator.control("PUT", "/faults", receipts=True)
        send(simulator, messageId="loud")
        assert {receipt.data.message_id for receipt in simulator.receiver.wait_for("receipt", 2)} == {"loud"}

    def test_numbers_may_not_be_on_whatsapp(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.control("PUT", "/faults", notOnWhatsapp=[f"+{CUSTOMER}"])
        answer = send(simulator)
        assert (answer.status_code, answer.json()["code"]) == (400, "not_on_whatsapp")
        assert send(simulator, to="5491187654321").status_code == 200
        assert simulator.control("GET", "/faults")["notOnWhatsapp"] == [CUSTOMER]

    def test_a_misspelt_fault_is_refused(self, simulator: SimulatedGateway) -> None:
        answer = simulator.client.put("/simulator/faults", json={"failurerate": 1})
        assert answer.status_code == 400
        assert "failurerate" in answer.json()["error"]


@pytest.mark.usefixtures("impatient")
class TestCallbacks:
    @pytest.mark.parametrize("refusals", [(503, 503, 503), (BREAK_OFF, 500, BREAK_OFF)])
    def test_they_come_in_order_and_again_until_accepted(
        self, simulator: SimulatedGateway, refusals: tuple[int, ...]
    ) -> None:
        connect(simulator)
        simulator.receiver.change(refused(*refusals))
        customers_write(simulator, "1", "2", "3", "4")
        assert texts_of(simulator.receiver.wait_for("message", 4)) == ["1", "2", "3", "4"]
        posted = [post for post in simulator.receiver.posts if post[0].name == "gateway.message"]
        assert texts_of([report for report, _ in posted]) == ["1", "1", "1", "1", "2", "3", "4"]

    def test_one_session_does_not_hold_up_another(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        connect(simulator, OTHER_SESSION)
        simulator.receiver.change(lambda report: 503 if report.session_id == SESSION else 200)
        customers_write(simulator, "held up")
        customers_write(simulator, "free", session_id=OTHER_SESSION)
        simulator.receiver.wait_for("message", session_id=OTHER_SESSION)
        assert simulator.receiver.of("message") == []
        assert simulator.control("GET", "/callbacks")["waiting"][SESSION] == 1
        simulator.receiver.change(lambda _: 200)
        assert texts_of(simulator.receiver.wait_for("message")) == ["held up"]

    def test_what_will_never_be_accepted_is_dropped_with_a_warning(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.receiver.change(refused(400))
        with capture_logs() as logs:
            customers_write(simulator, "never", "next")
            assert texts_of(simulator.receiver.wait_for("message")) == ["next"]
        [warning] = [log for log in logs if log["event"] == "simulator.callback_dropped"]
        assert (warning["log_level"], warning["status"], warning["session_id"]) == ("warning", 400, SESSION)

    def test_an_ingress_that_does_not_answer_is_asked_again(
        self, simulator: SimulatedGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(simulator)
        monkeypatch.setattr(callbacks, "ATTEMPT_SECONDS", 0.5)
        asked: list[GatewayReport] = []

        def answer(report: GatewayReport) -> int:
            asked.append(report)
            simulator.receiver.wait_until(lambda: len(asked) > 1)  # the first one hangs until it is asked again
            return 200

        simulator.receiver.change(answer)
        customers_write(simulator, "slow")
        assert texts_of(simulator.receiver.wait_for("message", 2))[:2] == ["slow", "slow"]

    def test_a_slow_receipt_does_not_hold_up_a_customer(self) -> None:
        with SimulatedGateway(receipt_delay=600) as simulator:
            connect(simulator)
            send(simulator)
            customers_write(simulator, "quick")
            simulator.receiver.wait_for("message")
            assert simulator.receiver.of("receipt") == []

    def test_each_attempt_is_signed_anew_under_the_id_of_its_callback(self) -> None:
        with SimulatedGateway(credentials=Credentials(TOKEN, SECRET)) as simulator:
            connect(simulator)
            simulator.receiver.change(refused(503, BREAK_OFF))
            customers_write(simulator, "first", "second")
            simulator.receiver.wait_for("message", 2)
            *_, once, again, accepted, second = simulator.receiver.raw
            for headers, body in simulator.receiver.raw:
                Webhook(SECRET).verify(body, headers)
                assert headers["authorization"] == f"Bearer {TOKEN}"
            assert [body for _, body in (once, again)] == [accepted[1]] * 2
            assert once[0]["webhook-id"] == again[0]["webhook-id"] == accepted[0]["webhook-id"]
            assert len({headers["webhook-id"] for headers, _ in simulator.receiver.raw}) == 4  # qr, connected, these
            assert second[0]["webhook-id"] != accepted[0]["webhook-id"]

    def test_where_nothing_is_asked_for_nothing_is_brought(self, simulator: SimulatedGateway) -> None:
        initialize(simulator)
        [(headers, _)] = simulator.receiver.raw
        assert not {"authorization", "webhook-id", "webhook-timestamp", "webhook-signature"} & set(headers)


@pytest.mark.usefixtures("impatient")
class TestMemory:
    def test_a_restart_keeps_sessions_and_ids(self, tmp_path: Path) -> None:
        with SimulatedGateway(state_path=tmp_path / "state" / "simulator.db") as simulator:
            connect(simulator)
            initialize(simulator, OTHER_SESSION)
            send(simulator, messageId=MESSAGE_ID)
            simulator.receiver.wait_for("receipt", 2)
            before = simulator.client.get("/sessions").json()
            simulator.restart()
            assert simulator.client.get("/sessions").json() == before
            assert send(simulator, messageId=MESSAGE_ID).json()["messageId"] == MESSAGE_ID
            assert [sent["messageId"] for sent in simulator.sent()] == [MESSAGE_ID]
            assert send(simulator, messageId="another").status_code == 200

    def test_a_restart_shows_a_new_qr_code_that_can_be_scanned(self, tmp_path: Path) -> None:
        with SimulatedGateway(state_path=tmp_path / "simulator.db") as simulator:
            old = initialize(simulator)
            simulator.restart()
            new = simulator.receiver.wait_for("qr", 2)[-1].data.qr_code
            assert decoded(new) != decoded(old)
            simulator.scan(SESSION, PHONE)
            simulator.receiver.wait_for("connected")

    def test_a_restart_keeps_callbacks_that_wait(self, tmp_path: Path) -> None:
        with SimulatedGateway(state_path=tmp_path / "simulator.db", receipt_delay=0.2) as simulator:
            connect(simulator)
            simulator.receiver.change(lambda _: 503)
            customers_write(simulator, "1", "2")
            send(simulator, messageId=MESSAGE_ID)
            simulator.restart()
            simulator.receiver.change(lambda _: 200)
            assert [receipt.data.status for receipt in simulator.receiver.wait_for("receipt", 2)] == [
                "delivered",
                "read",
            ]
            assert texts_of(simulator.receiver.of("message")) == ["1", "2"]

    def test_without_a_file_nothing_is_kept(self, simulator: SimulatedGateway) -> None:
        connect(simulator)
        simulator.restart()
        assert simulator.client.get("/sessions").json()["sessions"] == []
