"""A worker process: its settings come in one line on standard input, whose end means that its server is gone.

Further lines are orders: `drain SECONDS`.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from ..logs import log_to
from ..model.hooks import load_filter
from ..model.info import model_hash, read_model
from ..store import Store
from ..store.folder import DataFolder
from ..store.workers import announce
from .settings import WorkerSettings

log = logging.getLogger("ppvilg.serving.worker")


def main() -> int:
    """Loads the model, then draws until told to stop."""
    _leave_signals_to_the_server()
    # Unbuffered: a thread that waits in a buffered standard input makes the interpreter abort when it ends.
    orders = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
    settings = WorkerSettings(**json.loads(orders.readline()))
    log_to(settings.log_file)
    store = Store(settings.database)
    try:
        worker = _build(settings, store)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2  # trying again would not help
    _leave_signals_to_the_server()  # again, for Paddle takes SIGTERM over when it is imported
    threading.Thread(target=take_orders, args=(worker, orders), daemon=True).start()
    worker.run()
    return 0


def _leave_signals_to_the_server() -> None:
    """Those of a terminal or of systemd reach every process; the server says what a worker is to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def take_orders(worker, orders: BinaryIO) -> None:
    """Does what the lines say until they end."""
    for line in orders:
        order, _, value = line.decode().partition(" ")
        if order == "drain":
            worker.stop(float(value))
    worker.stop()  # the server is gone: hand everything back


def _build(settings: WorkerSettings, store: Store):
    """The worker over a pipeline that has drawn once."""
    started = time.time()

    def loading(what: str, fraction: float) -> None:
        announce(store, settings.name, "loading", started, loading={"what": what, "fraction": fraction})

    loading("libraries", 0.0)
    info = read_model(settings.model, settings.adapters)

    from paddlenlp.utils.log import logger

    from ppvilg._runtime import prepare_cpu
    from ppvilg.pipelines import open_pipeline

    from .painter import PipelinePainter
    from .worker import Worker

    prepare_cpu()
    logger.set_level("WARNING")
    loading("hash of the model", 0.3)
    hashes = {name: adapter.sha256 for name, adapter in info.adapters.items()}
    model = {"name": info.name, "hash": model_hash(info.folder), "lora": hashes}
    loading("weights", 0.5)
    folder = str(info.folder)
    pipeline = open_pipeline(
        folder, settings.backend, settings.max_resident_experts, settings.threads, settings.device
    )
    painter = PipelinePainter(pipeline, settings.max_resident_experts is not None, info.adapters)
    loading("warm-up", 0.8)
    _warm_up(painter, info)
    return Worker(
        store,
        DataFolder(Path(settings.data)),
        painter,
        settings.name,
        model,
        settings.slots,
        settings.keep_seconds,
        load_filter(settings.picture_filter),
    )


def _warm_up(painter, info) -> None:
    """Draws a picture with one step per expert: the first calls take much longer than the others."""
    settings = {
        "prompt": "猫",
        "negative_prompt": "",
        "style": "探索无限",
        "width": info.default_size[0],
        "height": info.default_size[1],
        "num_inference_steps": info.num_experts,
        "guidance_scale": info.default_guidance_scale,
        "sampler": info.default_sampler,
        "eta": 0.0,
        "strength": None,
        "word_weights": {},
        "lora": {},
    }
    drawing = painter.begin(settings, 0, None, None)
    while not drawing.done:
        painter.step([drawing])
    painter.preview(drawing)
    painter.finish(drawing)


if __name__ == "__main__":
    sys.exit(main())
