"""Worker processes that prepare things in turn, ahead of who asks for them."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from . import shared

_END = object()


def serve(connection: Connection) -> None:
    """What a worker process does: takes a task, then its arguments, and gives back results or (exception, its text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when work ends
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        task = _received(connection)
        while True:
            arguments = connection.recv()
            try:
                answer = (task(*arguments), None)
            except Exception as error:  # to be raised where somebody can see it
                answer = (error, traceback.format_exc())
            shared.send(connection, answer)


def _received(connection: Connection) -> Callable:
    """The task; where it cannot be read, as its module cannot be imported here, one that says so when it is called."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        failure = error

    def fail(*_):
        raise failure

    return fail


class WorkerPool:
    """task(*arguments) for all `arguments`, results in their order; up to `ahead` of them wait, in shared memory.

    Workers import neither Paddle nor the caller's main module, unless `task` does. They end when their pool is closed,
    and by themselves when the process that made them is gone.
    """

    def __init__(self, task: Callable, workers: int, ahead: int, arguments: Iterator[tuple]):
        paths = os.pathsep.join(path for path in sys.path if path)
        # Pillow keeps the memory of pictures instead of asking the system for every one.
        environment = {"PILLOW_BLOCKS_MAX": "8", **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._processes, self._connections = [], []
        for _ in range(workers):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", "ppvilg.data.loading.worker", str(theirs.fileno())]
            self._processes.append(
                subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
            )
            theirs.close()
            self._connections.append(ours)
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._collect, args=(task, arguments), name="ppvilg-data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator:
        """Results, from the first on. RuntimeError when a worker ended; what a worker raised."""
        while (answer := self._queue.get()) is not _END:
            if isinstance(answer, Exception):
                raise answer
            result, text = answer
            if text is not None:
                raise result from RuntimeError(f"in a data worker:\n{text}")
            yield result

    def _collect(self, task: Callable, arguments: Iterator[tuple]) -> None:
        """Keep every worker busy with the work after that which it hands over."""
        try:
            busy: deque[Connection] = deque()  # in the order of their work
            for connection, first in zip(self._connections, arguments):
                connection.send(task)
                connection.send(first)
                busy.append(connection)
            while busy:
                connection = busy.popleft()
                answer, following = shared.receive(connection), next(arguments, None)
                if following is not None:
                    connection.send(following)
                    busy.append(connection)
                if not self._put(answer):
                    return
            self._put(_END)
        except (EOFError, OSError) as error:
            if not self._stopped.is_set():
                codes = [process.poll() for process in self._processes]
                self._put(RuntimeError(f"a data worker ended by itself ({error!r}; exit codes, None: alive: {codes})"))
        except Exception as error:  # an iterator of arguments that fails, an object that cannot be sent
            self._put(error)

    def _put(self, answer) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(answer, timeout=0.5)
                return True
        return False

    def close(self) -> None:
        """End the workers."""
        self._stopped.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._thread.join()
        for connection in self._connections:
            connection.close()
