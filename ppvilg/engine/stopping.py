"""Stopping on request: a signal sets a flag, the loop sees it between two steps, checkpoints and leaves.

An exception raised by a signal handler would have to find its way out of Paddle's backward pass, which wraps it.
"""
from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_STOPPED = 75  # a checkpoint was written as asked; run the same command again (EX_TEMPFAIL of sysexits.h)

_requested: int | None = None
_loops = 0


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""


def install(seconds: int, at_once: Callable) -> None:
    """From now on SIGTERM and the first SIGINT let a running loop finish its step and checkpoint.

    The kernel ends a process that has not come to write its checkpoint `seconds` later (SIGALRM, exit code 142),
    whatever it hangs in. Outside a loop, and for the second SIGINT, `at_once(number, frame)` is called: there is
    nothing that a checkpoint would save.
    """

    def handle(number, frame):
        global _requested
        if not _loops or (number == signal.SIGINT and _requested is not None):
            at_once(number, frame)
        elif _requested is None:  # launchers send SIGTERM several times
            _requested = number
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
        signal.siginterrupt(number, False)  # Paddle's store takes a call that a signal interrupts for a lost connection


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _requested is not None


def take_time() -> None:
    """The step is done and its checkpoint is being written, which takes as long as it takes: the kernel waits."""
    signal.alarm(0)


def leave(code: int = EXIT_STOPPED) -> None:
    """End the process now: other ranks are leaving too, and nobody is there to say goodbye to.

    Paddle's groups abort a rank (SIGABRT) that takes them down after the rank that hosts their store has gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def loop() -> Iterator[None]:
    """Inside, a request is honoured between steps rather than at once."""
    global _loops
    _loops += 1
    try:
        yield
    finally:
        _loops -= 1
