"""A service in this process: the API on a port of its own, and a worker in a thread; every wait has an end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ppvilg.serving.api import build_app
from ppvilg.serving.model.info import model_hash
from ppvilg.serving.server import serve
from ppvilg.serving.service import Service, ServiceSettings
from ppvilg.serving.worker import Worker

FORBIDDEN = "不许画的"


def refuse(settings: dict, picture) -> str | None:
    """A filter: refuses one prompt after it was drawn, and another before."""
    if settings["prompt"] == "不许问的":
        return "nobody may ask for this"
    return "nobody may see this" if picture is not None and settings["prompt"] == FORBIDDEN else None


def until(condition: Callable[[], object], what: str, seconds: float = 90, pause: float = 0.02):
    """Waits for a true value and returns it; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(pause)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Running:
    """A service that answers."""

    service: Service
    url: str
    port: int
    ak: str = ""
    sk: str = ""


@contextlib.contextmanager
def running(model_folder: Path, data: Path, draws: bool = True, **settings):
    """Runs a service until the block ends, with one worker if it `draws`."""
    port = free_port()
    service = Service(ServiceSettings(str(model_folder), data, port=port, **settings), refuse)
    app = build_app(service, ())
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning", timeout_graceful_shutdown=5))
    runs = [lambda: asyncio.run(serve(server, app, service.settings, None))]
    if draws:
        worker = _worker(service, model_folder)
        runs.append(worker.run)
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()

    def is_up() -> bool:
        assert all(thread.is_alive() for thread in threads), "the server or its worker has ended"
        return server.started and (not draws or service.is_ready() and service.knowledge.is_loaded)

    try:
        until(is_up, "the service")
        yield Running(service, f"http://127.0.0.1:{port}", port)
    finally:
        server.should_exit = True
        if draws:
            worker.stop()
        for thread in threads:
            thread.join(30)
        service.store.close()
    assert not any(thread.is_alive() for thread in threads), "a thread of the service does not end"


def _worker(service: Service, model_folder: Path) -> Worker:
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    painter = PipelinePainter(open_pipeline(model_folder), adapters=service.model.adapters)
    hashes = {name: adapter.sha256 for name, adapter in service.model.adapters.items()}
    about = {"name": service.model.name, "hash": model_hash(model_folder), "lora": hashes}
    return Worker(service.store, service.folder, painter, "test", about, picture_filter=refuse)
