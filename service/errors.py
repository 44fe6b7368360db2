"""All errors of the service, in one tree.

ServiceError                  has a stable `code` and a sentence with the remedy
├── Unavailable               temporary: keep the message and try again
│   ├── DatabaseUnavailable
│   └── BrokerUnavailable     a publish was not confirmed (it may have arrived)
│       └── PublishRefused    a queue had no room for it; other queues of the same message may have it
├── GatewayError
│   ├── GatewayUnreachable    the gateway did not accept the call: nothing has happened
│   ├── GatewayOutcomeUnknown it is not known whether the call was executed
│   └── GatewayRefused        the gateway refused the call, with a code if it gave one
├── Undeliverable             a message that can never be processed: it becomes a dead letter
├── Rejected                  a well-formed request that cannot be executed
└── ConfigurationError        the service cannot start like this
"""


class ServiceError(Exception):
    """An error with a stable code."""

    code = "internal_error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code


class Unavailable(ServiceError):
    """The database or the broker is unavailable."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """The database did not answer, or the transaction must be repeated."""

    code = "database_unavailable"


class BrokerUnavailable(Unavailable):
    """RabbitMQ did not confirm a publish, or could not be used otherwise.

    Args:
        detail: a sentence with the remedy.
        code: a more precise one.
        refused: RabbitMQ answers and refuses: waiting alone does not help.
    """

    code = "broker_unavailable"

    def __init__(self, detail: str, *, code: str | None = None, refused: bool = False) -> None:
        super().__init__(detail, code=code)
        self.refused = refused


class PublishRefused(BrokerUnavailable):
    """A queue that the message was for has no room, and RabbitMQ does not report which one."""

    code = "queue_full"


class GatewayError(ServiceError):
    """A call to the WhatsApp gateway failed."""

    code = "gateway_error"


class GatewayUnreachable(GatewayError):
    """The gateway did not accept the call."""

    code = "gateway_unreachable"


class GatewayOutcomeUnknown(GatewayError):
    """The gateway received the call and did not report its result."""

    code = "outcome_unknown"


class GatewayRefused(GatewayError):
    """The gateway refused the call; `code` is the gateway's, or `refused` if it gave none."""

    code = "refused"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.explicit = code is not None


class Undeliverable(ServiceError):
    """The message can never be processed."""

    code = "undeliverable"


class Rejected(ServiceError):
    """The request is well formed but cannot be executed in the present state."""

    code = "rejected"


class ConfigurationError(ServiceError):
    """A setting or the machine does not allow the service to start."""

    code = "configuration"
