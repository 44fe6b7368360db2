"""The database roles of the compose stack, on a real PostgreSQL: those of Kubernetes, each with the password it has."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from deploy.compose import prepare
from service.persistence import migrations
from tests.deploy import compose
from tests.deploy.manifests import named, objects
from tests.servers import Postgres

STATEMENTS = (compose.FOLDER / "roles.sql").read_text(encoding="utf-8")
MOUNTED = "/docker-entrypoint-initdb.d/"
LACKING = """
    SELECT tablename, right_ FROM pg_tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_
    WHERE schemaname = 'public' AND NOT has_table_privilege(format('public.%I', tablename), right_)
"""


def _plain(statements: str) -> list[str]:
    """Return statements one by one, without comments and line breaks."""
    text = re.sub(r"^--.*$", "", statements, flags=re.MULTILINE)
    return [" ".join(statement.split()) for statement in text.split(";") if statement.strip()]


def test_the_roles_are_those_of_kubernetes() -> None:
    """The same statements, and the owner and the role of the processes under the same names."""
    spec = named(objects("overlays/production"), "Cluster", "whatsapp-qr-postgres")["spec"]
    initial, (managed,) = spec["bootstrap"]["initdb"], spec["managed"]["roles"]
    assert _plain(STATEMENTS) == [
        f"CREATE ROLE {initial['owner']} LOGIN",
        f"ALTER DATABASE {initial['database']} OWNER TO {initial['owner']}",
        *(" ".join(statement.split()) for statement in initial["postInitApplicationSQL"]),
        f"CREATE ROLE {managed['name']} LOGIN IN ROLE {', '.join(managed['inRoles'])}",
    ]
    assert set(prepare.DATABASE_URLS) == {managed["name"], initial["owner"]}


def test_postgres_runs_them_before_the_passwords() -> None:
    """Its image runs what ends in .sql, in the order of the names, once."""
    postgres = compose.read()["services"]["postgres"]
    files = {one["target"]: one["source"] for one in postgres["volumes"] if one["target"].startswith(MOUNTED)}
    files |= {one["target"]: one["source"] for one in postgres["secrets"] if isinstance(one, dict)}
    assert sorted(files) == [f"{MOUNTED}1-roles.sql", f"{MOUNTED}2-passwords.sql"]
    assert [files[name] for name in sorted(files)] == ["./roles.sql", "postgres_passwords"]


@dataclass
class Made:
    """A database as the container makes it."""

    administrator: asyncpg.Connection
    url: str
    secrets: Path

    def url_of(self, role: str) -> str:
        return self.url.replace("postgres@", f"{role}@")


@pytest.fixture
async def made(shared_postgres: Postgres, postgres_database: str, tmp_path: Path) -> AsyncIterator[Made]:
    """Run as administrator what the image runs; drop the roles after the test."""
    shutil.copy(compose.FOLDER / ".env.example", tmp_path)
    prepare.prepare(tmp_path, json.loads(prepare.RIGHTS.read_text(encoding="utf-8")))
    database = postgres_database.rpartition("/")[2]
    administrator = await asyncpg.connect(shared_postgres.url.rpartition("/")[0] + f"/{database}")
    await administrator.execute(STATEMENTS.replace("DATABASE whatsapp_qr ", f"DATABASE {database} "))
    await administrator.execute((tmp_path / "secrets" / "postgres_passwords").read_text())
    yield Made(administrator, postgres_database, tmp_path / "secrets")
    for role in ("whatsapp_qr", "whatsapp_qr_rows", "whatsapp_qr_owner"):
        await administrator.execute(f"REASSIGN OWNED BY {role} TO postgres")
        await administrator.execute(f"DROP OWNED BY {role}")
        await administrator.execute(f"DROP ROLE {role}")
    await administrator.close()


async def test_the_owner_migrates_and_the_processes_have_rows_alone(made: Made) -> None:
    """Every table can be read and written, none changed; neither role is an administrator."""
    with pytest.raises(Exception, match="permission denied"):
        await asyncio.to_thread(migrations.upgrade, made.url_of("whatsapp_qr"))
    await asyncio.to_thread(migrations.upgrade, made.url_of("whatsapp_qr_owner"))
    service = await asyncpg.connect(made.url_of("whatsapp_qr").replace("+asyncpg", ""))
    try:
        assert await service.fetch(LACKING) == []
        for statement in ("CREATE TABLE more (id int)", "DROP TABLE messages", "TRUNCATE messages"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
    finally:
        await service.close()
    assert await made.administrator.fetch("SELECT FROM pg_roles WHERE rolname ~ '^whatsapp_qr' AND rolsuper") == []


async def test_each_role_has_the_password_of_its_url(made: Made) -> None:
    """And not the other's: PostgreSQL keeps a hash of it."""
    passwords = {"postgres": (made.secrets / "postgres_password").read_text()}
    for role, name in prepare.DATABASE_URLS.items():
        url = (made.secrets / name).read_text()
        [passwords[role]] = re.findall(rf"^postgresql://{role}:(\w+)@postgres:5432/whatsapp_qr$", url)
    for role in passwords:
        stored = await made.administrator.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1", role)
        assert {other for other, password in passwords.items() if _fits(password, stored)} == {role}


def _fits(password: str, stored: str) -> bool:
    """Say whether a password belongs to what PostgreSQL stores: RFC 5802."""
    rounds, salt, key = re.findall(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):", stored)[0]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    client = hmac.digest(salted, b"Client Key", "sha256")
    return base64.b64encode(hashlib.sha256(client).digest()).decode() == key
