"""The database roles that components/cnpg makes: the owner changes the schema, the processes read and write rows."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.deploy.manifests import named, objects
from tests.servers import Postgres
from tests.system import System, eventually

CUSTOMER = "5491133334444"
LACKING = """
    SELECT tablename, right_ FROM pg_tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_
    WHERE schemaname = 'public' AND NOT has_table_privilege(format('public.%I', tablename), right_)
"""


@dataclass
class Roles:
    """A database as CloudNativePG hands it over, and who may log in."""

    owner_url: str
    service_url: str


@pytest.fixture
async def roles(shared_postgres: Postgres, postgres_database: str) -> AsyncIterator[Roles]:
    """Do as administrator what the operator does with the Cluster of production; drop the roles after the test."""
    spec = named(objects("overlays/production"), "Cluster", "whatsapp-qr-postgres")["spec"]
    initial, (managed,) = spec["bootstrap"]["initdb"], spec["managed"]["roles"]
    database = postgres_database.rpartition("/")[2]
    url = shared_postgres.url.rpartition("/")[0]
    administrator = await asyncpg.connect(f"{url}/{database}")
    await administrator.execute(f"CREATE ROLE {initial['owner']} LOGIN")
    await administrator.execute(f"ALTER DATABASE {database} OWNER TO {initial['owner']}")
    for statement in initial["postInitApplicationSQL"]:
        await administrator.execute(statement)
    await administrator.execute(f"CREATE ROLE {managed['name']} LOGIN IN ROLE {', '.join(managed['inRoles'])}")
    yield Roles(*(postgres_database.replace("postgres@", f"{role}@") for role in (initial["owner"], managed["name"])))
    for role in (managed["name"], *managed["inRoles"], initial["owner"]):
        await administrator.execute(f"REASSIGN OWNED BY {role} TO postgres")
        await administrator.execute(f"DROP OWNED BY {role}")
        await administrator.execute(f"DROP ROLE {role}")
    await administrator.close()


async def test_the_processes_need_no_more_than_rows(clean_broker: str, roles: Roles, tmp_path: Path) -> None:
    """The owner migrates; then messages flow both ways, by a role that cannot change a table."""
    system = System(clean_broker, roles.service_url, tmp_path)
    try:
        refused = system._process("migrate")
        await refused.start()
        assert await refused.ended() != 0
        migration = system._process("migrate", DATABASE_URL=roles.owner_url)
        await migration.start()
        assert await migration.ended() == 0, migration.log()
        await system.start()
        chatbot_id, session_id = await system.connect()
        jobs = await system.jobs()
        report = {"sessionId": session_id, "from": CUSTOMER, "timestamp": 1_700_000_000, "messageId": "WA1"}
        assert (await system.post("/incoming", **report, message="Hola")).status_code == 200
        await jobs.arrived()
        answer = await system.post("/send", chatbotId=str(chatbot_id), to=CUSTOMER, message="Buenas")
        message = answer.json()["messageId"]
        await eventually(lambda: system.message(message), lambda found: found.get("deliveryStatus") == "READ")
        assert (await system.post("/disconnect", chatbotId=str(chatbot_id))).status_code == 200
        service = await asyncpg.connect(roles.service_url.replace("+asyncpg", ""))
        assert await service.fetch(LACKING) == []
        for statement in (
            "CREATE TABLE more (id int)",
            "DROP TABLE messages",
            "TRUNCATE messages",
            "CREATE SCHEMA more",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
        await service.close()
    finally:
        await system.close()
