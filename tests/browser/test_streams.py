"""A session followed by a real browser, through a page of a platform's own that keeps the key to itself."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.servers import free_ports
from tests.system import NewSystem, eventually

KEY = "k" * 32
PAGE = b"""<!doctype html><title>Link your phone</title><img id=code><script>
const source = new EventSource("/events")
source.addEventListener("session", (event) => {
  const session = JSON.parse(event.data)
  const code = document.getElementById("code")
  const tell = () => fetch("/seen", {method: "POST", body: JSON.stringify([session.status, code.naturalWidth])})
  code.onload = tell
  session.qrCode ? code.src = session.qrCode : tell()
})
</script>"""


class Platform(http.server.ThreadingHTTPServer):
    """The backend of a page: hands the stream through, with the key, and hears what the page shows."""

    def __init__(self, events: str) -> None:
        super().__init__(("127.0.0.1", free_ports(1)[0]), Backend)
        self.events = events
        self.streams: list[str | None] = []
        """The Last-Event-ID of each stream that was opened."""
        self.seen: list[tuple[str, int]] = []
        """Each status that was shown, and how wide the picture was then."""


class Backend(http.server.BaseHTTPRequestHandler):
    server: Platform

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if self.path == "/events" else "text/html")
        self.end_headers()
        if self.path != "/events":
            self.wfile.write(PAGE)
            return
        with contextlib.suppress(OSError):  # the browser has gone
            while not self._handed_through(self.headers["Last-Event-ID"]):
                time.sleep(0.1)

    def _handed_through(self, last: str | None) -> bool:
        headers = {"X-API-Key": KEY} | ({"Last-Event-ID": last} if last else {})
        try:
            with httpx.stream("GET", self.server.events, headers=headers, timeout=60) as answer:
                assert answer.status_code == 200
                self.server.streams.append(last)
                for part in answer.iter_raw():
                    self.wfile.write(part)
        except httpx.ConnectError:  # it is being replaced
            return False
        return True

    def do_POST(self) -> None:
        status, width = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((status, width))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def opened(browser: list[str], events: str, folder: Path) -> Iterator[Platform]:
    """Serve the page, and open it in a browser for as long as the test lasts."""
    command = [*browser, "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    with Platform(events) as platform, (folder / "browser.log").open("wb") as log:
        threading.Thread(target=platform.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{platform.server_port}/"
        process = subprocess.Popen([*command, url], stdout=log, stderr=log, start_new_session=True)
        try:
            yield platform
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            platform.shutdown()


async def test_a_page_shows_the_code_and_what_becomes_of_it(
    browser: list[str], new_system: NewSystem, tmp_path: Path
) -> None:
    """The picture as soon as it is there, the link, and its end, also over a restart of the ingress."""
    async with new_system(API_KEYS=KEY) as system:
        chatbot_id = str(uuid4())
        session_id = (await system.post("/init", chatbotId=chatbot_id)).json()["sessionId"]
        with opened(browser, f"{system.api}/events/{session_id}", tmp_path) as platform:

            async def shown() -> tuple[str, int]:
                return platform.seen[-1] if platform.seen else ("", 0)

            async def streams() -> int:
                return len(platform.streams)

            await eventually(shown, lambda last: last[0] == "QR_READY" and last[1] > 100)
            await system.control(f"/sessions/{session_id}/scan", phoneNumber="5491100000000")
            await eventually(shown, lambda last: last[0] == "CONNECTED")
            [ingress] = system.named("ingress")
            assert await ingress.stop() == 0
            await ingress.start()
            await eventually(lambda: ingress.ready(system.http))
            await eventually(streams, lambda opened: opened > 1)
            await system.post("/disconnect", chatbotId=chatbot_id)
            await eventually(shown, lambda last: last[0] == "DISCONNECTED")
            assert platform.streams[0] is None
            assert platform.streams[-1], "it came again, and said what it had seen"
            statuses = [status for status, _ in platform.seen]
            assert statuses.count("CONNECTED") == 1, "what was seen is not shown again"
