"""The main job, end to end, with real processes: pair by QR, receive, answer, send."""

import base64
import io
import json
from pathlib import Path
from uuid import uuid4

import zxingcpp
from PIL import Image

from tests.system import eventually, running, send_by_amqp
from whatsapp_qr_contracts.commands import SendMessage

CUSTOMER = "5491112345678"


async def test_pair_receive_answer_send(clean_broker: str, database_url: str, tmp_path: Path) -> None:
    """From the first /init to a READ answer and a refused send after disconnect: each step as a user sees it."""
    async with running(clean_broker, database_url, tmp_path) as system:
        events, jobs = await system.hear(), await system.jobs()
        chatbot_id = uuid4()

        # init, QR code, scan
        answer = await system.post("/init", chatbotId=str(chatbot_id))
        assert answer.status_code == 200, answer.text
        session_id = answer.json()["sessionId"]
        assert answer.json() == {"success": True, "sessionId": session_id, "status": "CONNECTING"}
        assert session_id.startswith(f"session_{chatbot_id}_")
        qr = await eventually(lambda: system.get(f"/qr-code/{session_id}"), lambda found: found.status_code == 200)
        assert qr.json()["status"] == "QR_READY"
        image = Image.open(io.BytesIO(base64.b64decode(qr.json()["qrCode"].removeprefix("data:image/png;base64,"))))
        assert zxingcpp.read_barcodes(image)[0].text.startswith("2@")
        session = (await system.get(f"/session/{chatbot_id}")).json()["data"]
        assert session["qrCode"].startswith("data:image/png;base64,")
        await system.control(f"/sessions/{session_id}/scan", phoneNumber="5491100000000")
        await eventually(lambda: system.status(session_id), lambda status: status == "CONNECTED")
        assert (await system.get(f"/qr-code/{session_id}")).status_code == 404

        # a customer writes
        written = await system.control(
            f"/sessions/{session_id}/customers", **{"from": CUSTOMER, "message": "Hola", "pushName": "Ana"}
        )
        (job,) = await jobs.arrived()
        body = json.loads(job.body)
        assert body == {
            "conversationId": body["conversationId"],
            "messageId": body["messageId"],
            "content": "Hola",
            "chatbotId": str(chatbot_id),
            "externalUserId": CUSTOMER,
            "channel": "WHATSAPP_QR",
            "metadata": {
                "whatsappMessageId": written["messageId"],
                "timestamp": body["metadata"]["timestamp"],
            },
        }
        assert job.headers["conversation-sequence"] == 1
        assert job.headers["partition-key"] == str(chatbot_id)

        # a worker answers by AMQP
        command = SendMessage(
            chatbot_id=chatbot_id, to=body["externalUserId"], message="Buenas", metadata={"ticket": 7}
        )
        command_id = str(uuid4())
        await send_by_amqp(system, command, command_id)
        for status in ("sent", "delivered", "read"):
            await events.arrived(1, f"message.{status}")
        own = sorted(
            (event for event in events.messages if event.correlation_id == command_id),
            key=lambda event: int(json.loads(event.body)["version"]),  # two processes tell them
        )
        assert [event.type for event in own] == ["message.sent", "message.delivered", "message.read"]
        (sent,) = await system.sent(session_id)
        assert (sent["to"], sent["message"]) == (CUSTOMER, "Buenas")

        # stored once, in order
        conversations = (await system.get("/conversations", chatbotId=str(chatbot_id))).json()
        assert [found["id"] for found in conversations["data"]] == [body["conversationId"]]
        page = (await system.get(f"/conversations/{body['conversationId']}/messages")).json()
        assert [(row["role"], row["content"], row["deliveryStatus"]) for row in page["data"]] == [
            ("USER", "Hola", "DELIVERED"),
            ("ASSISTANT", "Buenas", "READ"),
        ]
        row = page["data"][1]
        assert row["metadata"] == {"ticket": 7}
        assert row["whatsappMessageId"] == sent["messageId"]
        assert row["createdAt"] < row["sentAt"]
        assert row["deliveredAt"]
        assert row["readAt"]

        # disconnect
        answer = await system.post("/disconnect", chatbotId=str(chatbot_id))
        assert answer.json() == {"success": True, "sessionId": session_id, "status": "DISCONNECTED"}
        refused = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="Too late")
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "not_connected"
        assert len(jobs.messages) == 1
        assert {name: len(ids) for name, ids in events.ids().items()} == {
            "session.connecting": 1,
            "session.qr_ready": 1,
            "session.connected": 1,
            "session.disconnected": 1,
            "conversation.started": 1,
            "message.received": 1,
            "message.sent": 1,
            "message.delivered": 1,
            "message.read": 1,
        }
