"""Every setting of every process: an environment variable or a file each, with its default and unit.

Only the composition roots (`apps` with its `parts`, `local`, `cli`) read it; other modules receive values.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.secret_files import read_all

_DRIVERS = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
_SIGNING_SECRET_BYTES = 24  # the minimum of Standard Webhooks


def _async_driver(url: object) -> object:
    """Accept the database URLs that platforms provide, and insert the asynchronous driver."""
    if not isinstance(url, str):
        return url
    scheme, separator, rest = url.partition("://")
    driver = _DRIVERS.get(scheme.partition("+")[0])
    if not separator or driver is None:
        raise ValueError("write postgresql://user:password@host/database or sqlite:///file")
    return f"{driver}{separator}{rest}"


def _amqp(url: object) -> object:
    if isinstance(url, str) and not url.startswith(("amqp://", "amqps://")):
        raise ValueError("write amqp://user:password@host:5672/ or amqps://…")
    return url


def _collector(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("write http://host:4318 or https://…")
    return url


def _separated(text: object) -> object:
    if not isinstance(text, str):
        return text
    keys = tuple(filter(None, map(str.strip, re.split(r"[,\n]", text))))
    if not keys:  # a variable that is set must not leave the ingress open
        raise ValueError("it contains no key; make one with: openssl rand -hex 24")
    return keys


def _http(url: object) -> object:
    if isinstance(url, str) and not url.startswith(("http://", "https://")):
        raise ValueError("write http://user:password@host:15672 or https://…")
    return url


def _key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{16,}", key.get_secret_value()):
        raise ValueError(
            "a key has at least 16 letters, digits or signs, no spaces; make one with: openssl rand -hex 24"
        )
    return key


def _signing_secret(secret: SecretStr) -> SecretStr:
    found = re.fullmatch(r"whsec_([A-Za-z0-9+/]+=*)", secret.get_secret_value())
    try:
        size = len(base64.b64decode(found[1])) if found else 0
    except binascii.Error:
        size = 0
    if size < _SIGNING_SECRET_BYTES:
        raise ValueError(
            "write whsec_ and at least 24 bytes as base64: WEBHOOK_SECRET=whsec_$(openssl rand -base64 32)"
        )
    return secret


DatabaseUrl = Annotated[str, BeforeValidator(_async_driver)]
AmqpUrl = Annotated[str, BeforeValidator(_amqp)]
ManagementUrl = Annotated[str, BeforeValidator(_http)]
CollectorUrl = Annotated[str, AfterValidator(_collector)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Keys = Annotated[tuple[Key, ...], NoDecode, BeforeValidator(_separated)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class Settings(BaseSettings):
    """The settings. The name of the environment variable is the field's name in upper case."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    amqp_url: AmqpUrl = Field(default="amqp://guest:guest@127.0.0.1:5672/", description="RabbitMQ, 3.10 or later")
    database_url: DatabaseUrl = Field(
        default="sqlite+aiosqlite:///.local/whatsapp-qr.db", description="`postgresql://…` or `sqlite:///file`"
    )
    whatsapp_qr_service_url: str = Field(
        default="http://whatsapp-qr-service:3001", description="Base URL of the WhatsApp gateway"
    )
    http_host: str = Field(default="127.0.0.1", description="Address the ingress and the health endpoints listen on")
    http_port: Port = Field(default=8000, description="Port of the ingress")
    internal_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of the ingress that serves /webhook and /incoming, and nothing else; `HTTP_PORT` then does "
        "not serve them, so that only the gateway need reach them",
    )
    health_port: Port = Field(
        default=8080,
        description="Port of a consumer's /livez and /readyz; `make run` adds 1, 2 and 3; 0 = any free one",
    )
    simulator_host: str = Field(
        default="127.0.0.1",
        description="Address the simulator listens on: every client that reaches it controls phones and customers",
    )
    simulator_port: Port = Field(default=3001, description="Port of the gateway simulator")
    callback_url: str = Field(
        default="http://127.0.0.1:8000", description="Base URL of the ingress, to which the simulator posts callbacks"
    )
    api_keys: Keys = Field(
        default=(),
        description="Keys of the callers, at least 16 characters each, separated by commas: each /whatsapp-qr call "
        "needs one, as `Authorization: Bearer …` or `X-API-Key`; if unset, only this machine is accepted and "
        "`HTTP_HOST` must be loopback",
    )
    webhook_token: Key | None = Field(
        default=None,
        description="Token of the gateway for /webhook and /incoming, at least 16 characters, as `Authorization: "
        "Bearer …`, also from this machine; if neither it nor `WEBHOOK_SECRET` is set, only this machine is accepted",
    )
    webhook_secret: SigningSecret | None = Field(
        default=None,
        description="`whsec_…`; the gateway signs /webhook and /incoming with it (Standard Webhooks; clocks at most "
        "5 minutes apart), also from this machine; if `WEBHOOK_TOKEN` is set too, one of the two is enough",
    )
    echo_bot: bool = Field(
        default=True,
        description="`make run` starts the echo bot, which answers every customer; `off` for your own worker",
    )
    partitions: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Partitions of each partitioned queue; the database stores the number, and no process starts with "
        "another one: docs/operations.md describes how to change it",
    )
    declare_topology: bool = Field(
        default=True,
        description="Every process declares exchanges and queues at its start; `off`: none does, and its broker user "
        "need not be permitted to do so: run `whatsapp-qr topology apply` before",
    )
    management_url: ManagementUrl | None = Field(
        default=None,
        description="RabbitMQ's management API, `http://user:password@host:15672`: `whatsapp-qr topology check` then "
        "also compares bindings, and finds objects that are not needed any more",
    )
    database_pool: int = Field(
        default=10,
        ge=2,
        le=1000,
        description="Connections to PostgreSQL per process, at most; two are for urgent work; SQLite has its own",
    )
    prefetch: int = Field(
        default=64,
        ge=1,
        le=1000,
        description="Unacknowledged messages per partition and process; a consumer's memory: 128 MiB + 2 x PREFETCH x "
        "(PARTITIONS + 1) x 1 MiB",
    )
    heartbeat_period: float = Field(
        default=15, gt=0, description="Seconds between two heartbeats by which consumers of a kind share the partitions"
    )
    release_after: float = Field(
        default=60,
        gt=0,
        description="Seconds of retries, while database or broker are unavailable, before partitions are released",
    )
    chatbots: Literal["open", "strict"] = Field(
        default="open",
        description="`open`: the first /init registers a chatbot; `strict`: it must be registered before",
    )
    send_rate: float = Field(default=1, gt=0, description="Messages per second and session in the long run")
    send_burst: int = Field(default=20, ge=1, description="Messages of a session that may be sent at once")
    send_jitter: float = Field(
        default=0.3, ge=0, le=1, description="Share by which a pause between messages is lengthened at random, at most"
    )
    send_expiry: float = Field(default=3600, gt=0, description="Seconds after which a message is no longer sent")
    send_attempts: int = Field(default=3, ge=1, description="Attempts whose outcome is unknown before a message fails")
    send_backoff: float = Field(default=2, gt=0, description="Seconds before the second attempt; doubles each time")
    gateway_timeout: float = Field(
        default=10, gt=0, description="Seconds a send may take; /init 0.8 of it, others half"
    )
    sweep_period: float = Field(default=30, gt=0, description="Seconds between two searches for work to resume")
    sweep_age: float = Field(default=60, gt=0, description="Seconds after which unfinished work is resumed")
    reconcile_period: float = Field(default=60, gt=0, description="Seconds between two comparisons with the gateway")
    reconcile_age: float = Field(
        default=60,
        gt=0,
        description="Seconds a session may be CONNECTING or without its connection before it is opened again",
    )
    reconcile_pause: float = Field(
        default=5, gt=0, description="Seconds between two looks that must agree: longer than a callback takes"
    )
    stuck_after: float = Field(
        default=300,
        gt=0,
        description="Seconds of failing sends after which a CONNECTED session becomes `action_required`",
    )
    lease: float = Field(
        default=30,
        ge=0.3,
        description="Seconds until another session consumer takes over the singleton jobs of one that was killed",
    )
    secrets_dir: Path | None = Field(
        default=None,
        description="Folder whose files are settings too, named as the variables here (`API_KEYS`: a key per line); "
        "an environment variable has precedence",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="`text` for people, `json` for machines")
    log_hash_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key of the hashes that replace phone numbers in logs, at least 16 characters; the same in all "
        "processes, so that their hashes can be compared; if unset, each process has a random one",
    )
    otel_exporter_otlp_endpoint: CollectorUrl | None = Field(
        default=None,
        description="Base URL of an OpenTelemetry collector (OTLP over HTTP, port 4318) for traces; needs the extra "
        "`otlp`; the SDK's own variables apply too, such as OTEL_TRACES_SAMPLER",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level logged")

    @classmethod
    def settings_customise_sources(  # noqa: D102
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings  # the framework's own only warns about files that it cannot read
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict(read_all(cls.model_fields)))
