"""All errors of the service, in one tree.

ServiceError                  has a stable `code` and a sentence that says what to do
├── Unavailable               passes by itself: hold the message and try again
│   ├── DatabaseUnavailable
│   └── BrokerUnavailable     a publish was not confirmed (it may have arrived)
│       └── PublishRefused    a queue had no room for it; others, bound beside that one, may have it
├── GatewayError
│   ├── GatewayUnreachable    the gateway did not take the call: nothing has happened
│   ├── GatewayOutcomeUnknown it may or may not have happened
│   └── GatewayRefused        it said no, with a code where it gave one
├── Undeliverable             a message that can never be processed: it goes to the dead letters
├── Rejected                  a well-formed request that cannot be carried out
└── ConfigurationError        the service cannot start like this
"""


class ServiceError(Exception):
    """Something went wrong that has a name."""

    code = "internal_error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code


class Unavailable(ServiceError):
    """A part that the service stands on is away."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """The database did not answer, or asked to try again."""

    code = "database_unavailable"


class BrokerUnavailable(Unavailable):
    """RabbitMQ did not confirm a publish, or was of no use otherwise.

    Args:
        detail: a sentence that says what to do.
        code: a more precise one.
        refused: it is there and says no: waiting alone does not end that.
    """

    code = "broker_unavailable"

    def __init__(self, detail: str, *, code: str | None = None, refused: bool = False) -> None:
        super().__init__(detail, code=code)
        self.refused = refused


class PublishRefused(BrokerUnavailable):
    """A queue that the message was for has no room, and RabbitMQ does not say which one."""

    code = "queue_full"


class GatewayError(ServiceError):
    """A call to the WhatsApp gateway failed."""

    code = "gateway_error"


class GatewayUnreachable(GatewayError):
    """The gateway did not take the call."""

    code = "gateway_unreachable"


class GatewayOutcomeUnknown(GatewayError):
    """The gateway took the call and did not say how it ended."""

    code = "outcome_unknown"


class GatewayRefused(GatewayError):
    """The gateway refused the call; `code` is the gateway's, or `refused` where it gave none."""

    code = "refused"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.explicit = code is not None


class Undeliverable(ServiceError):
    """The message can never be processed."""

    code = "undeliverable"


class Rejected(ServiceError):
    """The request is well formed but cannot be carried out as things stand."""

    code = "rejected"


class ConfigurationError(ServiceError):
    """A setting or the machine does not allow the service to start."""

    code = "configuration"
