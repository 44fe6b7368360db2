"""`whatsapp-qr topology` at a terminal, against a real broker: it declares, compares, and says who may do what."""

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest
from structlog.testing import capture_logs

from service.messaging import topology
from service.operating import comparing, management, rights
from service.operating import topology as operating
from service.operating.comparing import MAX_MESSAGE_SIZE, NEEDED_SIZE
from service.operating.management import Found
from service.settings import Settings
from tests.allowed import ALLOWED
from tests.operator import operate
from tests.servers import Broker, free_ports
from tests.system import SECONDS, System, eventually
from whatsapp_qr_contracts.message import COMMANDS, EVENTS

SESSIONS = "whatsapp-qr.sessions"


@pytest.fixture
async def system(clean_broker: str, sqlite_database: str, tmp_path: Path) -> AsyncIterator[System]:
    """An empty broker; no process runs."""
    system = System(clean_broker, sqlite_database, tmp_path, PARTITIONS="2")
    yield system
    await system.close()


async def test_apply_and_check(system: System) -> None:
    """Nothing is there: check says what is missing; apply declares it; check is content; both may be repeated."""
    before = await operate(system, "topology", "check")
    assert before.status == 1
    missing = {*(one.name for one in topology.EXCHANGES), *(one.name for one in topology.queues(2))}
    assert set(re.findall(r"^(?:exchange|queue) (\S+) is missing$", before.out, re.MULTILINE)) == missing
    assert before.out.count("run whatsapp-qr topology apply") == before.out.count("is missing")
    for _ in range(2):
        applied = await operate(system, "topology", "apply")
        assert (applied.status, applied.error) == (0, "")
    after = await operate(system, "topology", "check")
    assert (after.status, after.error) == (0, "")
    assert "set MANAGEMENT_URL" in after.out
    away = await operate(system, "topology", "check", MANAGEMENT_URL="http://user:marked-word@127.0.0.1:1")
    assert (away.status, "(MANAGEMENT_URL) cannot be used" in away.error) == (1, True)
    assert "marked-word" not in away.error


async def test_check_makes_nothing(system: System, shared_broker: Broker) -> None:
    """It looks only, also at what is missing."""
    await operate(system, "topology", "check")
    vhost = system.amqp_url.rpartition("/")[2]
    assert json.loads(await shared_broker.ctl("-q", "list_queues", "-p", vhost, "name", "--formatter=json")) == []


async def test_a_queue_with_other_arguments(system: System) -> None:
    """Apply fails and names it, check names it with what to do; what it holds stays."""
    async with await aio_pika.connect(system.amqp_url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(SESSIONS, durable=True)
        await channel.declare_exchange(COMMANDS, "topic", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"kept"), SESSIONS)
        applied = await operate(system, "topology", "apply")
        assert applied.status == 1
        assert COMMANDS in applied.error
        assert "see whatsapp-qr topology check" in applied.error
        checked = await operate(system, "topology", "check")
        assert checked.status == 1
        assert f"exchange {COMMANDS} has other properties: PRECONDITION_FAILED" in checked.out
        assert f"queue {SESSIONS} has other properties: PRECONDITION_FAILED" in checked.out
        assert "wait until it is empty, delete it" in checked.out
        again = await (await connection.channel()).declare_queue(SESSIONS, passive=True)
        assert again.declaration_result.message_count == 1


async def test_who_may_not_declare_is_told_so(system: System, shared_broker: Broker) -> None:
    """The sentence names what was refused, and where to look; status 1."""
    url = await _as_user(system, shared_broker, "ai-worker")
    answer = await operate(system, "topology", "apply", AMQP_URL=url)
    assert answer.status == 1
    assert "ACCESS_REFUSED" in answer.error
    assert answer.error.strip().endswith("see whatsapp-qr topology permissions")


async def test_apply_waits_until_it_is_let_in(system: System, shared_broker: Broker) -> None:
    """On a new cluster the job may come before its user: it tries again, and says what it waits for."""
    await _as_user(system, shared_broker, "whatsapp-qr-topology")
    await shared_broker.ctl("eval", 'rabbit_auth_backend_internal:delete_user(<<"whatsapp-qr-topology">>, <<"test">>).')
    url = system.amqp_url.replace("guest:guest", "whatsapp-qr-topology:word")
    with capture_logs() as told:
        applying = asyncio.create_task(comparing.apply(url, 2, wait=SECONDS))

        async def waits() -> set[str]:
            return {line["reason"] for line in told}

        assert await eventually(waits) == {"RabbitMQ refuses the user or the password of AMQP_URL"}
        await _as_user(system, shared_broker, "whatsapp-qr-topology")
        await applying
    assert (await operate(system, "topology", "check")).status == 0


@pytest.mark.parametrize("user", ["whatsapp-qr-session-consumer", "whatsapp-qr-operator"])
async def test_who_may_not_declare_sees_what_is_missing(system: System, shared_broker: Broker, user: str) -> None:
    """At night nobody looks for the password of the user who may declare."""
    url = await _as_user(system, shared_broker, user)
    before = await operate(system, "topology", "check", AMQP_URL=url)
    assert (before.status, f"queue {SESSIONS} is missing" in before.out) == (1, True)
    await operate(system, "topology", "apply")
    after = await operate(system, "topology", "check", AMQP_URL=url)
    assert (after.status, after.error) == (0, "")
    assert "only a user that may declare can compare properties" in after.out


OF_3 = 128 * 1024 * 1024
OF_4 = 16 * 1024 * 1024
TOO_MUCH = f"RabbitMQ accepts messages over {MAX_MESSAGE_SIZE} bytes"
TOO_LITTLE = f"RabbitMQ refuses messages of {NEEDED_SIZE} bytes"


async def _take(broker: Broker, size: int) -> None:
    """Let the broker take messages of that size; where 3.x keeps it, and where 4.x does."""
    keep = f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size})"
    assert (await broker.ctl("eval", f"{keep}.")).strip() == "ok"


@asynccontextmanager
async def _taking(broker: Broker, size: int) -> AsyncIterator[None]:
    await _take(broker, size)
    try:
        yield
    finally:
        await _take(broker, MAX_MESSAGE_SIZE)


async def test_other_sizes_are_seen(system: System, shared_broker: Broker) -> None:
    """To the byte; each with what to do about it. Without a limit of ours it is that of RabbitMQ 3 or 4."""
    await topology.declare(system.amqp_url, 2)
    too_much, too_little = (OF_3, OF_4, MAX_MESSAGE_SIZE + 1), (NEEDED_SIZE - 1, 100_000)
    async with _taking(shared_broker, MAX_MESSAGE_SIZE):
        for size in (*too_much, MAX_MESSAGE_SIZE, NEEDED_SIZE, *too_little):
            await _take(shared_broker, size)
            found = await comparing.compare_size(system.amqp_url)
            said = [TOO_MUCH] * (size in too_much) + [TOO_LITTLE] * (size in too_little)
            assert (size, [one.what.partition(":")[0].partition(",")[0] for one in found]) == (size, said)
            assert all("set max_message_size = 1048576 in rabbitmq.conf" in one.remedy for one in found)


@pytest.mark.parametrize("user", ["whatsapp-qr-topology", "whatsapp-qr-operator", "event-subscriber"])
async def test_every_user_sees_the_size(system: System, shared_broker: Broker, user: str) -> None:
    """One may publish everywhere, one no events, one nothing of ours."""
    await topology.declare(system.amqp_url, 2)
    url = await _as_user(system, shared_broker, user)
    assert await comparing.compare_size(url) == []
    async with _taking(shared_broker, OF_4):
        checked = await operate(system, "topology", "check", AMQP_URL=url)
    assert (checked.status, checked.out.splitlines()[0].partition(":")[0]) == (1, TOO_MUCH)
    assert "set max_message_size = 1048576 in rabbitmq.conf" in checked.out
    assert "1 of exchanges, queues, bindings and settings" in checked.error


async def test_the_size_is_looked_at_before_there_is_an_exchange(system: System, shared_broker: Broker) -> None:
    """Beside what is missing, on a broker that nobody has declared anything on."""
    assert await comparing.compare_size(system.amqp_url) == []
    async with _taking(shared_broker, OF_4):
        checked = await operate(system, "topology", "check")
    assert (checked.status, TOO_MUCH in checked.out, "is missing" in checked.out) == (1, True, True)
    lines = checked.error.strip().splitlines()
    assert lines[-1].endswith("of exchanges, queues, bindings and settings are not as they should be")


async def test_nobody_gets_what_the_size_is_tried_with(system: System, shared_broker: Broker) -> None:
    """Neither who hears every event, nor the dead letters; on a broker that takes it all."""
    await topology.declare(system.amqp_url, 2)
    async with await aio_pika.connect(system.amqp_url) as connection, _taking(shared_broker, OF_3):
        channel = await connection.channel()
        hears = await channel.declare_queue(exclusive=True)
        await hears.bind(EVENTS, "#")
        assert [one.what for one in await comparing.compare_size(system.amqp_url)] != []
        kept = await channel.declare_queue(topology.DEAD_LETTERS, passive=True)
        assert (await hears.get(fail=False), kept.declaration_result.message_count) == (None, 0)


async def test_with_the_management_api_the_size_is_looked_at_too(
    system: System, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API does not tell it."""
    await topology.declare(system.amqp_url, 2)

    async def found_nothing(_management_url: str, _amqp_url: str) -> Found:
        return Found()

    monkeypatch.setattr(management, "look", found_nothing)
    settings = Settings(amqp_url=system.amqp_url, management_url="http://127.0.0.1:1", partitions=2)
    async with _taking(shared_broker, OF_4):
        [found], well = await operating._looked_at(settings)
    assert found.what.startswith(TOO_MUCH)
    assert well == "as they should be, with all their bindings"


async def test_a_broker_that_takes_nothing_now(
    system: System, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory or disk it lets publishers wait: check ends, and says that it could not see the size."""
    monkeypatch.setattr(comparing, "_PUBLISH_SECONDS", 1.0)
    await topology.declare(system.amqp_url, 2)
    await shared_broker.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        begun = time.monotonic()
        [one] = await comparing.compare_size(system.amqp_url)
        assert time.monotonic() - begun < 10
        assert (await comparing.compare(system.amqp_url, 2)).differences == []
    finally:
        await shared_broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert one.what.startswith("RabbitMQ accepts no messages now")
    assert "alarms" in one.remedy


async def _as_user(system: System, broker: Broker, user: str) -> str:
    """Make the users; return the broker's URL for one of them."""
    vhost = system.amqp_url.rpartition("/")[2]
    text = json.dumps(rights.definitions({user: "word"}, vhost=vhost))
    encoded = base64.b64encode(text.encode()).decode()
    await broker.ctl("eval", f'rabbit_definitions:import_raw(base64:decode(<<"{encoded}">>)).')
    return system.amqp_url.replace("guest:guest", f"{user}:word")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("guest:wrong", "RabbitMQ refuses the user or the password of AMQP_URL"),
        ("whatsapp-qr-operator:word", "RabbitMQ refuses the user of AMQP_URL access to its virtual host"),
    ],
)
async def test_who_is_not_let_in_is_told_why(system: System, shared_broker: Broker, wrong: str, sentence: str) -> None:
    """RabbitMQ is reachable: nobody should look for a network that is broken."""
    await _as_user(system, shared_broker, "whatsapp-qr-operator")
    elsewhere = system.amqp_url.rpartition("/")[0] + "/%2F"
    url = (elsewhere if "operator" in wrong else system.amqp_url).replace("guest:guest", wrong)
    answer = await operate(system, "topology", "check", AMQP_URL=url)
    assert answer.status == 1
    assert answer.error.startswith(f"whatsapp-qr: {sentence}")
    assert "word" not in answer.error.removeprefix(f"whatsapp-qr: {sentence}")


@pytest.mark.parametrize("command", ["apply", "check"])
async def test_without_a_broker(sqlite_database: str, tmp_path: Path, command: str) -> None:
    """One sentence, no traceback, no password."""
    system = System("amqp://user:marked-word@127.0.0.1:1/", sqlite_database, tmp_path)
    answer = await operate(system, "topology", command)
    assert answer.status == 1
    assert answer.error.startswith("whatsapp-qr: RabbitMQ is not reachable: ")
    assert "Traceback" not in answer.error
    assert "marked-word" not in answer.error
    if command == "apply":
        waited = await operate(system, "topology", "apply", "--wait", "3")
        tried = waited.error.count("not_declared_yet")
        assert tried >= 1
        assert (waited.status, waited.error.count("\n")) == (1, tried + 1)
    wrong = await operate(system, "topology", command, MANAGEMENT_URL="localhost:15672")
    assert (wrong.status, "MANAGEMENT_URL is" in wrong.error) == (2, True)
    await system.close()


async def test_permissions_and_definitions(system: System, tmp_path: Path) -> None:
    """Users and rights for people, for scripts, and for RabbitMQ; with the passwords of a folder, as hashes."""
    shown = await operate(system, "topology", "permissions")
    assert [line for line in shown.out.splitlines() if not line.startswith(" ")] == list(ALLOWED)
    rows = (await operate(system, "topology", "permissions", "--json")).objects()
    assert {row["user"]: row["configure"] for row in rows}["whatsapp-qr-session-consumer"] == "^$"
    (tmp_path / "ai-worker").write_text("a-marked-word\n")
    answer = await operate(system, "topology", "definitions", "--passwords", str(tmp_path), "--vhost", "v")
    assert answer.status == 0
    assert "a-marked-word" not in answer.out
    found = json.loads(answer.out)
    assert [user["name"] for user in found["users"] if user["password_hash"]] == ["ai-worker"]
    assert {one["vhost"] for one in found["permissions"]} == {"v"}


async def test_what_the_management_api_really_lists(clean_broker: str, shared_broker: Broker) -> None:
    """Its own answers, compared: nothing differs after apply; a lost and a foreign binding and a left-over do."""
    await topology.declare(clean_broker, 3)
    port = free_ports(1)[0]
    await shared_broker.ctl("eval", _ENABLE.replace("PORT", str(port)))
    try:
        assert management.differences(await listed(shared_broker, port), 3) == []
        async with await aio_pika.connect(clean_broker) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(SESSIONS, ensure=False)
            await queue.unbind(COMMANDS, "chatbot.remove.0")
            foreign = await channel.declare_queue("somebody", durable=True)
            await foreign.bind(COMMANDS, "#")
            found = management.differences(await listed(shared_broker, port), 2)
    finally:
        await shared_broker.ctl("eval", _DISABLE)
    said = {one.what for one in found}
    assert f"queue {SESSIONS} is not bound to {COMMANDS} under 'chatbot.remove.0'" in said
    assert f"queue somebody is bound to {COMMANDS} under '#', and should not be" in said
    assert f"queue {SESSIONS}.2 is beyond PARTITIONS" in said


_ENABLE = """
application:load(rabbitmq_management),
{ok, File} = application:get_env(rabbit, enabled_plugins_file),
ok = application:set_env(rabbitmq_management, tcp_config, [{port, PORT}, {ip, "127.0.0.1"}]),
ok = file:write_file(File, "[rabbitmq_management].\\n"),
{ok, _, _} = rabbit_plugins:ensure(File),
{ok, _} = application:ensure_all_started(inets), ok.
"""
_DISABLE = """
{ok, File} = application:get_env(rabbit, enabled_plugins_file),
ok = file:write_file(File, "[].\\n"),
{ok, _, _} = rabbit_plugins:ensure(File), ok.
"""
# Asked from within the node: its port may be one of a container.
_ASK = """
{ok, {{_, 200, _}, _, Body}} = httpc:request(get, {"URL", [{"authorization", "Basic Z3Vlc3Q6Z3Vlc3Q="}]}, [],
    [{body_format, binary}]), base64:encode(Body).
"""


async def listed(broker: Broker, port: int) -> Found:
    """Return what the API lists of the virtual host in use."""
    vhost = broker.url.rpartition("/")[2]
    rows = []
    for kind in ("queues", "bindings"):
        url = f"http://127.0.0.1:{port}/api/{kind}/{vhost}"
        answer = await broker.ctl("eval", _ASK.replace("URL", url))
        rows.append(json.loads(base64.b64decode("".join(re.findall(r"[A-Za-z0-9+/=]+", answer)))))
    return Found(*rows)
