"""Makes what the containers of this folder need and nobody should share: secrets/, a file each, and .env.

python3 deploy/compose/prepare.py     (the standard library suffices; what exists is kept)

A secret is made anew by deleting its file and running this again; then `docker compose up --detach --force-recreate`.
Only the password of PostgreSQL is kept in its data as well: change it there first.
"""

import base64
import copy
import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RIGHTS = FOLDER.parent / "broker" / "definitions.json"
ADMINISTRATOR = "administrator"  # for the management pages; no process uses it
AMQP_URL = "amqp_url_"


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

    if not (kept / "postgres_password").exists():
        (kept / "database_url").unlink(missing_ok=True)  # it has a password that is gone
    password = _keep(kept / "postgres_password", _password())
    _keep(kept / "database_url", f"postgresql://whatsapp_qr:{password}@postgres:5432/whatsapp_qr")
    _keep(kept / "api_keys", _password())
    _keep(kept / "webhook_secret", f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")
    _keep(kept / "log_hash_key", _password())
    _keep(kept / "grafana_password", _password())
    passwords = {ADMINISTRATOR: _keep(kept / ADMINISTRATOR, _password())}
    for user in (user["name"] for user in rights["users"]):
        # A process is in a container, a client on this machine.
        host = "rabbitmq" if user.startswith("whatsapp-qr-") else "127.0.0.1"
        url = _keep(kept / file_of(user), f"amqp://{user}:{_password()}@{host}:5672/")
        passwords[user] = url.partition("@")[0].rpartition(":")[2]
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
