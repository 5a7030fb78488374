"""Waiting for jobs to change: one look at the store serves everybody who waits."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from .store import Store, jobs

POLL_SECONDS = 0.05
WATCH_SECONDS = 5.0


class Watcher:
    """Wakes those who wait for a job; belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._known: dict[str, int] = {}
        self._looking: asyncio.Task | None = None
        self._watched: dict[str, float] = {}

    async def changed(self, id: str, revision: int, seconds: float) -> bool:
        """Returns True when the job has another revision than this one, False after so many seconds."""
        event = asyncio.Event()
        self._waiting[id].add(event)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        deadline = time.monotonic() + seconds
        try:
            while self._known.get(id, revision) == revision:
                event.clear()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                try:
                    await asyncio.wait_for(event.wait(), left)
                except asyncio.TimeoutError:
                    return False
            return True
        finally:
            self._waiting[id].discard(event)
            if not self._waiting[id]:
                del self._waiting[id]
                self._known.pop(id, None)

    async def watch(self, id: str) -> None:
        """Asks for previews of a job; to be repeated, at least every WATCH_SECONDS / 2."""
        now = time.time()
        if self._watched.get(id, 0.0) < now + WATCH_SECONDS / 2:
            self._watched = {each: until for each, until in self._watched.items() if until > now}
            self._watched[id] = now + WATCH_SECONDS
            await asyncio.to_thread(jobs.watch, self._store, [id], self._watched[id])

    async def _look(self) -> None:
        while self._waiting:
            found = await asyncio.to_thread(jobs.revisions, self._store, list(self._waiting))
            for id in list(self._waiting):
                if self._known.get(id) != found.get(id, -1):
                    self._known[id] = found.get(id, -1)
                    for event in self._waiting.get(id, ()):
                        event.set()
            await asyncio.sleep(POLL_SECONDS)
