"""All messages of the contract, in reading order."""

from whatsapp_qr_contracts.commands import (
    CancelMessage,
    DisconnectSession,
    InitializeSession,
    RegisterChatbot,
    RemoveChatbot,
    RetryMessage,
    SendMessage,
)
from whatsapp_qr_contracts.events import (
    ChatbotRegistered,
    ChatbotRemoved,
    CommandRejected,
    ConversationStarted,
    MessageCancelled,
    MessageDelivered,
    MessageFailed,
    MessageQueued,
    MessageRead,
    MessageReceived,
    MessageSent,
    SessionConnected,
    SessionConnecting,
    SessionDisconnected,
    SessionQrReady,
)
from whatsapp_qr_contracts.gateway import (
    GatewayConnected,
    GatewayDisconnected,
    GatewayMessage,
    GatewayQr,
    GatewayReceipt,
)
from whatsapp_qr_contracts.jobs import IncomingJob, SendJob
from whatsapp_qr_contracts.message import Message

MESSAGES: tuple[type[Message], ...] = (
    # commands
    InitializeSession,
    DisconnectSession,
    RegisterChatbot,
    RemoveChatbot,
    SendMessage,
    CancelMessage,
    RetryMessage,
    # reports of the gateway
    GatewayQr,
    GatewayConnected,
    GatewayDisconnected,
    GatewayReceipt,
    GatewayMessage,
    # jobs
    IncomingJob,
    SendJob,
    # events
    SessionConnecting,
    SessionQrReady,
    SessionConnected,
    SessionDisconnected,
    ConversationStarted,
    MessageReceived,
    MessageSent,
    MessageDelivered,
    MessageRead,
    MessageFailed,
    MessageCancelled,
    MessageQueued,
    ChatbotRegistered,
    ChatbotRemoved,
    CommandRejected,
)
"""Every message class. A new one must be added here: a test checks that none is missing."""

BY_NAME: dict[str, type[Message]] = {message.name: message for message in MESSAGES}
"""The class of each message by its AMQP `type`."""
