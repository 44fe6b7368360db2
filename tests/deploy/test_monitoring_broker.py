"""What a real RabbitMQ says is what rules and dashboards ask for."""

import base64
import re

import pytest

from deploy.monitoring import known
from service.messaging import topology
from tests.servers import Broker, free_ports

DETAILED = "/metrics/detailed?family=queue_coarse_metrics&family=queue_consumer_count"


async def _started(broker: Broker) -> int:
    """Start the plugin, which is offline in a private node, and return its port inside the node's machine."""
    said = await broker.ctl(
        "eval",
        f"""case lists:keymember(rabbitmq_prometheus, 1, application:which_applications()) of
            true -> ok;
            false ->
                {{ok, File}} = application:get_env(rabbit, enabled_plugins_file),
                ok = file:write_file(File, "[rabbitmq_prometheus]."),
                Listener = [{{port, {free_ports(1)[0]}}}, {{ip, "127.0.0.1"}}],
                application:set_env(rabbitmq_prometheus, tcp_config, Listener),
                {{ok, _, _}} = rabbit_plugins:ensure(File)
        end,
        proplists:get_value(port, application:get_env(rabbitmq_prometheus, tcp_config, []), 15692).""",
    )
    return int(said.strip())


async def _text(broker: Broker, port: int, path: str) -> str:
    """Return a page; asked for inside the node, which may be a container."""
    said = await broker.ctl(
        "eval",
        f"""inets:start(),
        {{ok, {{{{_, 200, _}}, _, Body}}}} = httpc:request("http://127.0.0.1:{port}{path}"),
        base64:encode_to_string(Body).""",
    )
    return base64.b64decode(re.sub(r"[^A-Za-z0-9+/=]", "", said)).decode()


async def _page(broker: Broker, port: int, path: str) -> dict[str, set[str]]:
    """Return the metrics of a page with their labels."""
    text = await _text(broker, port, path)
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? [^ ]+$", text, flags=re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.fixture(scope="module")
async def port(shared_broker: Broker, amqp_url: str) -> int:
    """The port of the plugin on a broker that has our topology."""
    await topology.declare(amqp_url, 1)
    port = await _started(shared_broker)
    while topology.DEAD_LETTERS not in await _text(shared_broker, port, DETAILED):  # until the queues' first statistics
        pass
    return port


async def test_the_detailed_page_tells_each_queue(shared_broker: Broker, port: int) -> None:
    """The queues' metrics, with exactly those labels, are on the page and with the families that are scraped."""
    page = await _page(shared_broker, port, DETAILED)
    assert {name: page.get(name) for name in known.RABBITMQ_DETAILED} == known.RABBITMQ_DETAILED


async def test_the_default_page_tells_the_node(shared_broker: Broker, port: int) -> None:
    """The node's metrics, with exactly those labels, are on the default page; the queues' are not."""
    page = await _page(shared_broker, port, "/metrics")
    assert {name: page.get(name) for name in known.RABBITMQ} == known.RABBITMQ
    assert not known.RABBITMQ_DETAILED.keys() & page.keys()
