"""`whatsapp-qr up`: the whole service on one machine, every part in its own process under supervisord.

It writes only to `.local/` of the current folder: data, logs, pid files. On any signal it stops ingress and consumers
first and the broker last.

In the order of a run:

leftovers     one run at a time per folder; ends processes that a killed run left
programs      the programs to start, their addresses, and the settings that follow
broker        the private RabbitMQ, if no other is set
ports         addresses to listen on
supervision   supervisord: its configuration and its process
readiness     waits until every part answers, or reports why one does not
output        the printed lines
"""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from service.local.broker import require_broker
from service.local.leftovers import end_leftovers, only_one
from service.local.output import say, say_what_runs
from service.local.programs import Program, choose_programs, pointed_at, require_free_ports
from service.local.readiness import wait_until_ready
from service.local.supervision import require_alive, start_supervisor, stop_supervisor
from service.settings import Settings

__all__ = ["up"]


def up(settings: Settings, migrate: Callable[[Settings], None]) -> None:
    """Start everything, wait until it is ready, run until a signal arrives, stop everything."""
    folder = Path.cwd() / ".local"
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    began = time.monotonic()
    with only_one(folder):
        if end_leftovers(folder):
            say("Ended processes that an earlier run had left")
        if "amqp_url" in settings.model_fields_set:
            require_broker(settings.amqp_url)
        programs = choose_programs(settings, folder)
        require_free_ports(programs)
        settings = pointed_at(programs, settings)
        say("Preparing the database")
        migrate(settings)
        if not stop.is_set():
            _run(settings, programs, folder, stop, began)


def _run(settings: Settings, programs: list[Program], folder: Path, stop: threading.Event, began: float) -> None:
    supervisor = start_supervisor(settings, programs, folder)
    try:
        wait_until_ready(programs, folder, supervisor, stop)
        if not stop.is_set():
            say_what_runs(settings, programs, time.monotonic() - began)
        while not stop.wait(0.5):
            require_alive(supervisor, folder)
    finally:
        say("Stopping")
        stop_supervisor(supervisor)
        end_leftovers(folder)
    say("Stopped; the data stays in .local/")
