"""Makes what the containers of this folder need and nobody should share: secrets/, a file each, and .env.

python3 deploy/compose/prepare.py     (the standard library suffices; what exists is kept)

A secret is made anew by deleting its file and running this again; then `docker compose up --detach --force-recreate`.
PostgreSQL keeps passwords in its data: README.md says how it is told new ones.
"""

import base64
import copy
import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RIGHTS = FOLDER.parent / "broker" / "definitions.json"
ADMINISTRATOR = "administrator"  # for the management pages; no process uses it
AMQP_URL = "amqp_url_"
DATABASE_URLS = {"whatsapp_qr": "database_url", "whatsapp_qr_owner": "database_url_owner"}


def main() -> int:
    """Make what is missing and say where it is; return the exit status."""
    prepare(FOLDER, json.loads(RIGHTS.read_text(encoding="utf-8")))
    kept = FOLDER / "secrets"
    sys.stdout.write(
        f"Settings    {FOLDER / '.env'}\n"
        f"API key     {kept / 'api_keys'}\n"
        f"RabbitMQ    user {ADMINISTRATOR}, password in {kept / ADMINISTRATOR}\n"
        f"Grafana     user admin, password in {kept / 'grafana_password'}\n"
        f"AI worker   AMQP_URL in {kept / file_of('ai-worker')}\n"
    )
    return 0


def prepare(folder: Path, rights: dict[str, Any]) -> None:
    """Make the secrets that are missing, and from the broker's rights its users with their passwords."""
    kept = folder / "secrets"
    kept.mkdir(mode=0o700, exist_ok=True)  # the files themselves are read by the accounts in the containers
    settings = folder / ".env"
    if not settings.exists():
        settings.write_bytes((folder / ".env.example").read_bytes())

    roles = {"postgres": _keep(kept / "postgres_password", _password())}
    for role, name in DATABASE_URLS.items():
        url = _keep(kept / name, f"postgresql://{role}:{_password()}@postgres:5432/whatsapp_qr")
        roles[role] = _password_in(url)
    statements = (f"ALTER ROLE {role} PASSWORD '{password}';\n" for role, password in roles.items())
    _write(kept / "postgres_passwords", "".join(statements))
    _keep(kept / "api_keys", _password())
    _keep(kept / "webhook_secret", f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")
    _keep(kept / "log_hash_key", _password())
    _keep(kept / "grafana_password", _password())
    passwords = {ADMINISTRATOR: _keep(kept / ADMINISTRATOR, _password())}
    for user in (user["name"] for user in rights["users"]):
        # A process is in a container, a client on this machine.
        host = "rabbitmq" if user.startswith("whatsapp-qr-") else "127.0.0.1"
        url = _keep(kept / file_of(user), f"amqp://{user}:{_password()}@{host}:5672/")
        there = re.sub(r"@127\.0\.0\.1:\d+/", f"@127.0.0.1:{_amqp_port(settings)}/", url)
        if there != url:
            _write(kept / file_of(user), there)
        passwords[user] = _password_in(url)
    _write(kept / "broker_definitions", json.dumps(definitions(rights, passwords), indent=2))


def file_of(user: str) -> str:
    """Return the name of the file with a user's AMQP_URL."""
    return AMQP_URL + user.removeprefix("whatsapp-qr-").replace("-", "_")


def definitions(rights: dict[str, Any], passwords: dict[str, str]) -> dict[str, Any]:
    """Return what RabbitMQ reads at its start: the users of the rights with their passwords, and the administrator."""
    filled = copy.deepcopy(rights)
    filled["users"].append({"name": ADMINISTRATOR, "tags": ["administrator"]})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    for vhost in rights["vhosts"]:
        filled["permissions"].append({"user": ADMINISTRATOR, "vhost": vhost["name"], **everything})
    for user in filled["users"]:
        user["hashing_algorithm"] = "rabbit_password_hashing_sha256"
        user["password_hash"] = _hash(passwords[user["name"]])
    return filled


def _amqp_port(settings: Path) -> str:
    """Return the broker's port on this machine as docker compose takes it: a variable wins over .env."""
    written = re.findall(r"^AMQP_PORT=[\"']?(\d*)", settings.read_text(encoding="utf-8"), re.MULTILINE)
    return os.environ.get("AMQP_PORT", written[-1] if written else "") or "5672"


def _password_in(url: str) -> str:
    return url.partition("@")[0].rpartition(":")[2]


def _hash(password: str) -> str:
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _password() -> str:
    return secrets.token_hex(24)


def _keep(path: Path, content: str) -> str:
    """Write a file that does not exist yet; return what is in it."""
    if not path.exists():
        _write(path, content)
    return path.read_text(encoding="utf-8")


def _write(path: Path, content: str) -> None:
    """Write a file as a whole, whatever stops this."""
    new = path.with_suffix(".new")
    new.write_text(content, encoding="utf-8")
    new.chmod(0o444)
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
