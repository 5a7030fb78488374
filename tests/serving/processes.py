"""`tools/serve.py` as a process over a folder of data."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.serving.running import free_port, until

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """A server that is ready when the block begins, and gone with its workers when the block ends."""

    def __init__(self, model: str | Path, data: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "tools/serve.py", "-m", str(model), "--data", str(data), "--port"]
        self.command += [str(self.port), *options]
        self.output = data.parent / f"output-{self.port}.txt"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ServerProcess:
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            until(lambda: self.process.poll() is not None or self.is_ready(), "the server", 180, pause=0.2)
            assert self.process.poll() is None, self.said()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == self.process.pid]

    def submit(self, **asked) -> str:
        asked = {"prompt": "三只企鹅", "num_inference_steps": 40, **asked}
        return httpx.post(f"{self.url}/v1/jobs", json=asked, trust_env=False, timeout=60).json()["id"]

    def end(self, seconds: float = 100) -> int:
        """Asks it to drain; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, of which no process gets to know."""
        if self.process.poll() is None:
            workers = self.workers()
            self.process.kill()
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        self.process.wait(30)


def _parent(process: Path) -> int | None:
    """Process id of the parent of a process in /proc, None when it has gone."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
