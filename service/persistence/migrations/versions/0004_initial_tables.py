"""All tables, as they were before lanes had rows and rows recorded their unpublished outputs."""

from alembic import op

revision = "0004"
down_revision = None
branch_labels = None
depends_on = None

_WORDS = {
    "sqlite": {"uuid": "CHAR(32)", "time": "DATETIME", "bytes": "BLOB", "unannounced": "announced = 0"},
    "postgresql": {"uuid": "UUID", "time": "TIMESTAMPTZ", "bytes": "BYTEA", "unannounced": "NOT announced"},
}
_SCHEMA = """
CREATE TABLE chatbots (id {uuid} NOT NULL, registered_at {time} NOT NULL, removed_at {time}, PRIMARY KEY (id));
CREATE TABLE commands (
    chatbot_id {uuid} NOT NULL, command_id VARCHAR(255) NOT NULL, name VARCHAR NOT NULL, outcome JSON,
    created_at {time} NOT NULL, digest VARCHAR(64), PRIMARY KEY (chatbot_id, command_id)
);
CREATE TABLE receipts (
    session_id VARCHAR NOT NULL, whatsapp_message_id VARCHAR(255) NOT NULL, status VARCHAR(16) NOT NULL,
    at {time} NOT NULL, error VARCHAR, created_at {time} NOT NULL,
    PRIMARY KEY (session_id, whatsapp_message_id, status)
);
CREATE TABLE conversations (
    id {uuid} NOT NULL, chatbot_id {uuid} NOT NULL, channel VARCHAR(32) NOT NULL,
    external_user_id VARCHAR(255) NOT NULL, status VARCHAR(16) NOT NULL, last_message_at {time} NOT NULL,
    sequence_end INTEGER NOT NULL, announced BOOLEAN NOT NULL, created_at {time} NOT NULL,
    changed_at {time} DEFAULT '1970-01-01 00:00:00.000000' NOT NULL,
    PRIMARY KEY (id), FOREIGN KEY(chatbot_id) REFERENCES chatbots (id), UNIQUE (chatbot_id, channel, external_user_id)
);
CREATE TABLE sessions (
    id {uuid} NOT NULL, chatbot_id {uuid} NOT NULL, session_id TEXT NOT NULL, status VARCHAR(16) NOT NULL,
    status_reason VARCHAR, wanted BOOLEAN NOT NULL, qr_code TEXT, qr_at {time}, phone_number VARCHAR,
    last_connected_at {time}, version INTEGER NOT NULL, announced_version INTEGER NOT NULL,
    lane_end INTEGER NOT NULL, drain_at {time}, created_at {time} NOT NULL, updated_at {time} NOT NULL,
    moved_at {time} DEFAULT '1970-01-01 00:00:00.000000' NOT NULL,
    PRIMARY KEY (id), FOREIGN KEY(chatbot_id) REFERENCES chatbots (id), UNIQUE (chatbot_id), UNIQUE (session_id)
);
CREATE TABLE messages (
    id {uuid} NOT NULL, conversation_id {uuid} NOT NULL, chatbot_id {uuid} NOT NULL, session_id TEXT NOT NULL,
    role VARCHAR(16) NOT NULL, content TEXT NOT NULL, delivery_status VARCHAR(16) NOT NULL,
    whatsapp_message_id VARCHAR(255) NOT NULL, announced BOOLEAN NOT NULL, correlation_id VARCHAR NOT NULL,
    caller_metadata JSON NOT NULL, external_user_id VARCHAR(255) NOT NULL, sequence INTEGER,
    sent_at_customer BIGINT, push_name VARCHAR, type VARCHAR, lane_number INTEGER, attempts INTEGER NOT NULL,
    claimed_until {time}, claim {uuid}, not_before {time}, expires_at {time}, error_code VARCHAR,
    error_message TEXT, created_at {time} NOT NULL, sent_at {time}, delivered_at {time}, read_at {time},
    failed_at {time}, changed_at {time} DEFAULT '1970-01-01 00:00:00.000000' NOT NULL, traceparent VARCHAR(55),
    PRIMARY KEY (id), FOREIGN KEY(conversation_id) REFERENCES conversations (id)
);
CREATE TABLE leases (
    duty VARCHAR(64) NOT NULL, holder VARCHAR(64) NOT NULL, until {time} NOT NULL, PRIMARY KEY (duty)
);
CREATE TABLE processes (
    id VARCHAR(64) NOT NULL, kind VARCHAR(64) NOT NULL, partitions JSON NOT NULL, seen_at {time} NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE dead_letters (
    id {uuid} NOT NULL, reason VARCHAR(255) NOT NULL, detail TEXT NOT NULL, source VARCHAR(255) NOT NULL,
    exchange VARCHAR(255) NOT NULL, routing_key VARCHAR(255) NOT NULL, message_id VARCHAR(255) NOT NULL,
    correlation_id VARCHAR(255) NOT NULL, type VARCHAR(255) NOT NULL, body {bytes} NOT NULL,
    properties JSON NOT NULL, headers JSON NOT NULL, attempts INTEGER NOT NULL, burial VARCHAR(64) NOT NULL,
    died_at {time} NOT NULL, replayed_at {time}, PRIMARY KEY (id)
);
CREATE INDEX ix_commands_created_at ON commands (created_at);
CREATE INDEX ix_receipts_created_at ON receipts (created_at);
CREATE INDEX ix_processes_seen_at ON processes (seen_at);
CREATE INDEX ix_dead_letters_reason ON dead_letters (reason);
CREATE INDEX conversations_newest_first ON conversations (chatbot_id, last_message_at, id);
CREATE INDEX conversations_unannounced ON conversations (chatbot_id) WHERE {unannounced};
CREATE INDEX sessions_unannounced ON sessions (session_id) WHERE announced_version < version;
CREATE INDEX messages_by_whatsapp_id ON messages (session_id, whatsapp_message_id);
CREATE UNIQUE INDEX messages_lane ON messages (session_id, lane_number) WHERE delivery_status = 'PENDING';
CREATE INDEX messages_oldest_first ON messages (conversation_id, created_at, id);
CREATE INDEX messages_unannounced ON messages (session_id) WHERE {unannounced};
CREATE INDEX messages_expiring ON messages (expires_at) WHERE delivery_status = 'PENDING'
"""


def upgrade() -> None:
    for statement in _SCHEMA.format(**_WORDS[op.get_bind().dialect.name]).split(";"):
        op.execute(statement)
