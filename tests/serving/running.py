"""A service over a tiny model in this process: the API on a port, one worker in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from ppvilg.serving.api import build_app
from ppvilg.serving.model.info import model_hash
from ppvilg.serving.service import Service, ServiceSettings
from ppvilg.serving.store.keys import new_key
from ppvilg.serving.worker import Worker
from tests.bundles import tiny  # noqa: F401  (a fixture)
from tests.pipelines.conftest import components  # noqa: F401

FORBIDDEN = "不许画的"


def refuse(settings: dict, picture) -> str | None:
    """A filter: refuses one prompt after it was drawn, and another before."""
    if settings["prompt"] == "不许问的":
        return "nobody may ask for this"
    return "nobody may see this" if picture is not None and settings["prompt"] == FORBIDDEN else None


@pytest.fixture(scope="session")
def model_folder(tiny, tmp_path_factory) -> Path:  # noqa: F811
    """A tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@dataclass
class Running:
    """A service that answers."""

    service: Service
    worker: Worker
    url: str
    port: int
    ak: str = ""
    sk: str = ""


@contextlib.contextmanager
def running(model_folder: Path, data: Path, database: str | None = None, **settings):
    """Runs a service with one worker until the block ends."""
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = Service(ServiceSettings(str(model_folder), data, database, port=port, **settings), refuse)
    painter = PipelinePainter(open_pipeline(model_folder))
    about = {"name": service.model.name, "hash": model_hash(model_folder)}
    worker = Worker(service.store, service.folder, painter, "test", about, picture_filter=refuse)
    server = uvicorn.Server(uvicorn.Config(build_app(service), "127.0.0.1", port, log_level="warning"))
    threads = [threading.Thread(target=worker.run), threading.Thread(target=server.run)]
    for thread in threads:
        thread.start()
    while not (server.started and service.is_ready() and service.knowledge.is_loaded):
        time.sleep(0.02)
    try:
        yield Running(service, worker, f"http://127.0.0.1:{port}", port)
    finally:
        server.should_exit = True
        worker.stop()
        for thread in threads:
            thread.join()
        service.store.close()


@pytest.fixture(scope="session")
def served(model_folder, tmp_path_factory):
    """A service with a key, open to this machine without one too."""
    with running(model_folder, tmp_path_factory.mktemp("service")) as found:
        found.ak, found.sk = new_key(found.service.store, "test")
        yield found
