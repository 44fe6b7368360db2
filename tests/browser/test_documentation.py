"""The documentation of a running ingress in a real browser that reaches nothing but this machine."""

import functools
import html
import http.server
import json
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from tests.servers import REPOSITORY, free_ports
from tests.system import System

SECONDS = 300
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
ASYNCAPI = REPOSITORY / "schemas" / "asyncapi.yaml"
OUTSIDE = {"pictures.example.org", "scripts.example.org"}


@dataclass
class Visit:
    """What a page became, and what it asked for."""

    text: str
    requests: set[str]

    @property
    def hosts(self) -> set[str | None]:
        return {urlsplit(url).netloc for url in self.requests if urlsplit(url).scheme != "data"}


def visit(browser: list[str], url: str, folder: Path) -> Visit:
    """Open a page, wait until nothing moves any more, and return what is there. No name leads to another machine."""
    record = folder / "requests.json"
    command = [*browser, "--dump-dom", "--virtual-time-budget=20000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={record}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    events = [event.get("params", {}) for event in json.loads(record.read_text())["events"]]
    # What the browser asks for itself, the time for one, belongs to no page.
    of_the_page = {
        str(event["url"])
        for event in events
        if "url" in event and str(event.get("network_isolation_key")).startswith("http://127.0.0.1")
    }
    return Visit(done.stdout, of_the_page)


@pytest.fixture(scope="module")
async def ingress(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of an ingress whose broker is away: its documentation is there all the same."""
    folder = tmp_path_factory.mktemp("ingress")
    system = System(NOWHERE, f"sqlite+aiosqlite:///{folder / 'whatsapp-qr.db'}", folder)
    await system.start("ingress")
    yield f"http://127.0.0.1:{system.ingress_port}"
    await system.close()


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(document["operations"].values())


def test_the_amqp_page_shows_the_interface(browser: list[str], ingress: str, tmp_path: Path) -> None:
    """Every operation, channel and message, without a request to elsewhere."""
    page = visit(browser, f"{ingress}/asyncapi", tmp_path)
    document = yaml.safe_load(ASYNCAPI.read_text(encoding="utf-8"))
    used = [
        document["channels"][operation["channel"]["$ref"].rpartition("/")[2]] for operation in _operations(document)
    ]
    shown = {channel["address"] for channel in used} | {operation["summary"] for operation in _operations(document)}
    shown |= {message["title"] for message in document["components"]["messages"].values()}
    assert len(used) == len(document["channels"])
    text = html.unescape(re.sub("<[^>]*>", "", page.text)).replace("`", "")
    assert {wanted for wanted in shown if wanted.replace("`", "") not in text} == set()
    assert page.hosts == {urlsplit(ingress).netloc}
    assert f"{ingress}/asyncapi.yaml" in page.requests


def test_the_rest_page_shows_the_interface(browser: list[str], ingress: str, tmp_path: Path) -> None:
    """Every path, without a request to elsewhere."""
    page = visit(browser, f"{ingress}/docs", tmp_path)
    paths = httpx.get(f"{ingress}/openapi.json").json()["paths"]
    # Swagger UI lets a browser break the line behind each slash.
    text = page.text.replace("\u200b", "").replace("<wbr>", "").replace("<wbr/>", "")
    assert {path for path in paths if path not in text} == set()
    assert page.hosts == {urlsplit(ingress).netloc}


def test_what_is_served_is_the_document(ingress: str) -> None:
    """As YAML, byte for byte; other files of the folder are not served."""
    answer = httpx.get(f"{ingress}/asyncapi.yaml")
    assert answer.headers["content-type"] == "application/yaml"
    assert answer.content == ASYNCAPI.read_bytes()
    assert httpx.get(f"{ingress}/asyncapi/README.md").status_code == 404


@pytest.fixture
def hungry_page(tmp_path: Path) -> Iterator[str]:
    """URL of a page that wants a picture and a script from elsewhere."""
    picture, script = sorted(OUTSIDE)
    (tmp_path / "index.html").write_text(f'<img src="http://{picture}/a"><script src="https://{script}/b"></script>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_ports(1)[0]), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_request_to_elsewhere_would_be_seen(browser: list[str], hungry_page: str, tmp_path: Path) -> None:
    """The same visit finds what a page wants from other machines."""
    assert visit(browser, hungry_page, tmp_path).hosts == {urlsplit(hungry_page).netloc, *OUTSIDE}
