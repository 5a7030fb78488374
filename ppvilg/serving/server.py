"""The server process: the API in this process, workers in processes of their own that it starts, watches and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from tqdm import tqdm

from .api import build_app
from .redirect.proxy import HOSTS, TunnelProxy
from .service import Service, ServiceSettings
from .store import Store, claims, workers
from .worker.settings import WorkerSettings, worker_name

log = logging.getLogger("ppvilg.serving.server")

KEEP_ALIVE_SECONDS = 120  # clients of Baidu's protocol poll every 20 seconds over one connection
UNUSABLE = 2  # the exit code of a worker that no second start would help
RESTART_SECONDS = (0.0, 1.0, 5.0, 15.0)  # before the first, second, ... start after starts that did not get ready


class Workers:
    """Worker processes, started again when they die; the leases of the dead end at once."""

    def __init__(self, store: Store, settings: WorkerSettings, count: int) -> None:
        self._store, self._settings, self._count = store, settings, count
        self._processes: dict[str, subprocess.Popen] = {}
        self._watchers: list[threading.Thread] = []
        self._ending = threading.Event()
        self.unusable = threading.Event()

    def start(self) -> None:
        for number in range(self._count):
            watcher = threading.Thread(target=self._keep_one, args=(number,), name=f"worker-{number}", daemon=True)
            watcher.start()
            self._watchers.append(watcher)

    def end(self, drain_seconds: float) -> None:
        """Lets the workers finish what they hold, for so long; returns when they have ended."""
        self._ending.set()
        for process in list(self._processes.values()):
            with contextlib.suppress(BrokenPipeError, ValueError):
                process.stdin.write(f"drain {drain_seconds}\n")
                process.stdin.flush()
        deadline = time.monotonic() + drain_seconds + 10
        for watcher in self._watchers:
            watcher.join(max(deadline - time.monotonic(), 0.1))
        for process in list(self._processes.values()):
            process.kill()

    def _keep_one(self, number: int) -> None:
        failures = 0
        while not self._ending.wait(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]):
            name = worker_name(number)
            process = self._launch(name)
            self._processes[name] = process
            code = process.wait()
            ready = any(each.id == name and each.state != "loading" for each in workers.present(self._store))
            claims.give_up_leases(self._store, name)
            workers.leave(self._store, name)
            del self._processes[name]
            if code == UNUSABLE:
                self.unusable.set()
                return
            failures = 0 if ready else failures + 1
            if not self._ending.is_set():
                log.error("a worker ended", extra={"worker": name, "code": code})

    def _launch(self, name: str) -> subprocess.Popen:
        settings = replace(self._settings, name=name)
        command = [sys.executable, "-m", "ppvilg.serving.worker.process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        process.stdin.write(settings.as_line())
        process.stdin.flush()
        return process


class Server(uvicorn.Server):
    """uvicorn, whose first signal begins to drain and whose second ends at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining = False

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for number in (signal.SIGTERM, signal.SIGINT):  # Paddle, which the tokenizer brings, takes SIGTERM over
                signal.signal(number, self.handle_exit)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame) -> None:
        if self._draining:
            super().handle_exit(sig, frame)
            return
        self._draining = True
        threading.Thread(target=self._drain_and_exit, name="drain").start()

    def _drain_and_exit(self) -> None:
        self._drain()
        self.should_exit = True


def run(
    service: Service, worker: WorkerSettings, count: int, drain_seconds: float, redirect: int | None = None
) -> int:
    """Serves until a signal; returns the exit code. redirect: port of the proxy for clients with fixed hosts."""
    settings = service.settings
    pool = Workers(service.store, worker, count)
    app = build_app(service, () if redirect is None else HOSTS)

    def drain() -> None:
        service.is_draining = True
        pool.end(drain_seconds)

    config = uvicorn.Config(
        app,
        settings.host,
        settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = Server(config, drain)
    pool.start()
    threading.Thread(target=_tell, args=(service, server, pool), daemon=True).start()
    try:
        asyncio.run(serve(server, app, settings, redirect))
    finally:
        if not service.is_draining:
            drain()
    return 1 if pool.unusable.is_set() or not server.started else 0


async def serve(server: Server, app, settings: ServiceSettings, redirect: int | None) -> None:
    """Runs the server, and beside it on the same loop the TLS port and the proxy that leads there."""
    if redirect is None:
        await server.serve()
        return
    from .redirect.authority import Certificates  # cryptography takes a moment, and few need it

    certificates = Certificates(settings.data / "redirect")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        tls = uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
            ssl_certfile=certificates.chain,
            ssl_keyfile=certificates.key,
        )
        second = _Second(tls)
        proxy = TunnelProxy(redirect, HOSTS, listening.getsockname())
        await proxy.start()
        print(
            f"clients with fixed hosts: HTTPS_PROXY=http://127.0.0.1:{proxy.port} "
            f"REQUESTS_CA_BUNDLE={certificates.bundle.resolve()} NO_PROXY=127.0.0.1",
            flush=True,
        )
        beside = asyncio.create_task(second.serve(sockets=[listening]))
        try:
            await server.serve()
        finally:
            proxy.close()
            second.should_exit = True
            await beside


class _Second(uvicorn.Server):
    """A server that leaves signals to the first."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def run_workers(settings: ServiceSettings, worker: WorkerSettings, count: int, drain_seconds: float) -> int:
    """Workers alone, for a server elsewhere, until a signal; returns the exit code."""
    _, store = settings.open_store()
    pool, ended = Workers(store, worker, count), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    pool.start()
    print(f"{count} workers draw for the store; pictures in {settings.data}", flush=True)
    while not ended.wait(0.5) and not pool.unusable.is_set():
        pass
    pool.end(drain_seconds)
    return 1 if pool.unusable.is_set() else 0


def _tell(service: Service, server: Server, pool: Workers) -> None:
    """Shows how loading goes, and when the service is ready."""
    start = time.monotonic()
    with tqdm(total=100, bar_format="{desc:<22} {percentage:3.0f}% |{bar}| {elapsed}", file=sys.stderr) as bar:
        while not service.is_ready():
            if pool.unusable.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if server.should_exit or service.is_draining:
                return
            loading = next((each.loading for each in workers.present(service.store) if each.loading), None)
            if loading:
                bar.set_description_str(loading["what"], refresh=False)
                bar.n = int(100 * loading["fraction"])
                bar.refresh()
            time.sleep(0.2)
        bar.set_description_str("ready", refresh=False)
        bar.n = 100
        bar.refresh()
    settings = service.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(
        f"{service.model.name} is ready after {time.monotonic() - start:.1f} s: http://{host}:{settings.port}/, "
        f"pictures in {settings.data}",
        flush=True,
    )
