"""What a worker process is told when it is started."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process must know."""

    name: str
    model: str
    data: str
    database: str
    slots: int = 8
    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    max_resident_experts: int | None = None
    keep_seconds: float | None = None
    picture_filter: str | None = None
    log_file: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)  # name -> path

    def as_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def worker_name(number: int) -> str:
    """A name that no other worker has, on any machine."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{number}-{int(time.time() * 1000) % 10**9}"
