"""RabbitMQ as this service uses it."""

from deploy.monitoring.boards.queries import IN, QUEUES, rate, stat
from deploy.monitoring.panels import Board, Panel, Row

_MEMORY = f"rabbitmq_process_resident_memory_bytes{{{IN}}} / rabbitmq_resident_memory_limit_bytes{{{IN}}}"

BOARD = Board(
    "broker",
    "WhatsApp QR / Broker",
    "RabbitMQ as this service uses it. The queues are told by /metrics/detailed alone.",
    "rabbitmq_detailed_queue_consumers",
    [
        Row(
            "Queues",
            [
                Panel(
                    "Waiting messages",
                    "Ready in each queue. incoming-messages is the AI workers' to read.",
                    "short",
                    [(f"sum by (queue) (rabbitmq_detailed_queue_messages_ready{{{QUEUES}, {IN}}})", "{{queue}}")],
                ),
                Panel(
                    "Messages being worked on",
                    "Delivered and not acknowledged. At most PREFETCH (64) per queue.",
                    "short",
                    [(f"sum by (queue) (rabbitmq_detailed_queue_messages_unacked{{{QUEUES}, {IN}}})", "{{queue}}")],
                ),
                Panel(
                    "Consumers",
                    "Processes connected to each queue, of which one is active. 0 is an alert.",
                    "short",
                    [(f"max by (queue) (rabbitmq_detailed_queue_consumers{{{QUEUES}, {IN}}})", "{{queue}}")],
                ),
            ],
        ),
        Row(
            "Flow",
            [
                Panel(
                    "Messages",
                    "Received from publishers, and confirmed to them. A gap that lasts: the broker is too slow.",
                    "cps",
                    [
                        (rate("rabbitmq_global_messages_received_total", "protocol"), "received"),
                        (rate("rabbitmq_global_messages_confirmed_total", "protocol"), "confirmed"),
                        (rate("rabbitmq_global_messages_redelivered_total", "protocol"), "delivered again"),
                    ],
                ),
                Panel(
                    "Unroutable and dead",
                    "Returned because no queue takes them, or dead after too many deliveries. Normal: 0.",
                    "cps",
                    [
                        (rate("rabbitmq_global_messages_unroutable_returned_total", "protocol"), "returned"),
                        (
                            rate("rabbitmq_global_messages_dead_lettered_delivery_limit_total", "queue_type"),
                            "delivery limit {{queue_type}}",
                        ),
                    ],
                ),
                Panel(
                    "Our publishes",
                    "By outcome, as the service saw them.",
                    "cps",
                    [(rate("whatsapp_qr_published_total", "outcome"), "{{outcome}}")],
                ),
            ],
        ),
        Row(
            "Nodes",
            [
                Panel(
                    "Memory in use",
                    "Of the high watermark, above which the broker takes no messages.",
                    "percentunit",
                    [(f"max by (instance) ({_MEMORY})", "{{instance}}")],
                ),
                Panel(
                    "Free disk",
                    "Below the limit the broker takes no messages.",
                    "bytes",
                    [
                        (f"min by (instance) (rabbitmq_disk_space_available_bytes{{{IN}}})", "free {{instance}}"),
                        (
                            f"max by (instance) (rabbitmq_disk_space_available_limit_bytes{{{IN}}})",
                            "limit {{instance}}",
                        ),
                    ],
                ),
                Panel(
                    "Connections",
                    "To each node. One that is missing after a failure has not come back.",
                    "short",
                    [(f"sum by (instance) (rabbitmq_connections{{{IN}}})", "{{instance}}")],
                ),
            ],
        ),
        Row(
            "Alarms",
            [
                stat(
                    "Memory alarm",
                    "1: the broker takes no messages.",
                    f"max(rabbitmq_alarms_memory_used_watermark{{{IN}}})",
                    bad_from=1,
                ),
                stat(
                    "Disk alarm",
                    "1: the broker takes no messages.",
                    f"max(rabbitmq_alarms_free_disk_space_watermark{{{IN}}})",
                    bad_from=1,
                ),
                stat(
                    "File descriptor alarm",
                    "1: the broker takes no connections.",
                    f"max(rabbitmq_alarms_file_descriptor_limit{{{IN}}})",
                    bad_from=1,
                ),
            ],
        ),
    ],
)
