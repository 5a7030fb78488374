"""Runs a training command again until it ends well; no process of a failed attempt is left behind.

    ppvilg supervise [--restarts 100] [--wait 1] -- \\
        python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c ...

Paddle's launcher ends all ranks when one is lost and does not start them again (without etcd). Exit codes: 0, the
command ended well; 75, it was stopped by a signal and has checkpointed; else that of the last attempt. SIGTERM and
SIGINT go to the ranks themselves, past the launcher, which would give them half a minute only; they then checkpoint
and leave. Linux only (/proc, child subreaper). Standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

EXIT_STOPPED = 75  # of tools/train.py: stopped as asked, with a checkpoint
LONGEST_WAIT = 60.0
_SET_CHILD_SUBREAPER = 36


def descendants(process: int) -> list[int]:
    """Living processes below one, parents first; zombies are not counted."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:  # gone in the meantime
                continue
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.name))
    found = list(children.get(process, []))
    for each in found:  # grows while it is walked
        found += children.get(each, [])
    return found


def ranks(process: int) -> list[int]:
    """Processes below one that were started as ranks: PADDLE_TRAINER_ID is in their environment, not their parent's."""
    marked = {each: _is_rank(each) for each in [process, *descendants(process)]}
    return [each for each, mark in marked.items() if mark and not marked.get(_parent(each), False)]


def _is_rank(process: int) -> bool:
    try:
        return b"\0PADDLE_TRAINER_ID=" in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


class Supervisor:
    """Starts a command up to `restarts` more times; `start` gives the process id of a new attempt.

    The wait before another attempt is `wait` seconds, doubled for each in a row that lasted less than a minute.
    """

    def __init__(self, start: Callable[[], int], restarts: int, wait: float):
        self.start, self.restarts, self.wait = start, restarts, wait
        self.stopping, self.process = False, None

    def run(self) -> int:
        """Exit code for the whole; see the module."""
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)  # what its launcher leaves behind becomes ours
        before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._attempts()
        finally:
            self._clear()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _attempts(self) -> int:
        short = 0
        for left in range(self.restarts, -1, -1):
            started = time.monotonic()
            self.process = self.start()
            code = self._watch()
            self._clear()
            seconds = time.monotonic() - started
            if code in (0, EXIT_STOPPED) or self.stopping:
                return code
            short = short + 1 if seconds < LONGEST_WAIT else 0
            pause = min(self.wait * 2 ** max(0, short - 1), LONGEST_WAIT)
            then = f"starting again in {pause:.0f} s ({left} times left)" if left else "giving up"
            _say(f"the command ended with {code} after {seconds:.0f} s; {then}")
            if left:
                self._pause(pause)
            if self.stopping:
                return code
        return code

    def _watch(self) -> int:
        """Exit code of the attempt; orphans that come to us meanwhile are reaped."""
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == self.process:
                return os.waitstatus_to_exitcode(status)
            if process == 0:
                time.sleep(0.1)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopping:
            time.sleep(0.1)

    def _clear(self) -> None:
        """End whatever is still there of an attempt, and wait until it is gone."""
        while left := descendants(os.getpid()):
            for process in left:
                _send(process, signal.SIGKILL)
            time.sleep(0.05)
            _reap()
        _reap()

    def _forward(self, number, frame) -> None:
        self.stopping = True
        if self.process is not None:
            chosen = ranks(self.process) or [self.process]
            _say(f"signal {number} received; asking {len(chosen)} process(es) to checkpoint and leave")
            for process in chosen:
                _send(process, signal.SIGTERM)


def _reap() -> None:
    """Take the exit codes of all children that have ended, so that no zombie stays."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:  # no child is left: all are reaped, which is what this is for
        return


def _send(process: int, number: int) -> None:
    """Signal a process that may have ended since it was found; that it is gone is as good as the signal."""
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it ended by itself, and whoever waits for it sees its exit code
        return


def _say(text: str) -> None:
    os.write(2, f"supervise: {text}\n".encode())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="ppvilg supervise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=100, help="how often the command is started again at most")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds before that")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- command ...")
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("give the command after --")

    running = []  # a Popen that nobody holds would reap a process that is gone already

    def start() -> int:
        running[:] = [subprocess.Popen(command, start_new_session=True)]  # Ctrl-C in the terminal comes to us alone
        return running[0].pid

    try:
        code = Supervisor(start, arguments.restarts, arguments.wait).run()
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
