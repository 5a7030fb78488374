"""A request to stop must not break what the ranks are saying to each other."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from engine_tiny import ROOT

INTERRUPTED = """
    import ctypes, importlib.util, os, signal, threading, time

    specification = importlib.util.spec_from_file_location("stopping", FILE)
    stopping = importlib.util.module_from_spec(specification)  # alone: the engine takes seconds to import
    specification.loader.exec_module(stopping)
    stopping.install(60, lambda number, frame: os._exit(9))
    readable, writable = os.pipe()

    def ask_then_answer():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.write(writable, b"x")

    with stopping.loop():
        threading.Thread(target=ask_then_answer).start()
        # a bare read, as Paddle's store does; Python's own would go on after a signal by itself
        received = ctypes.CDLL(None).read(readable, ctypes.create_string_buffer(1), 1)
    print(received, stopping.requested())
"""


def test_a_signal_does_not_interrupt_a_system_call_of_paddle():
    source = textwrap.dedent(INTERRUPTED).replace("FILE", repr(str(ROOT / "ppvilg" / "engine" / "stopping.py")))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "True"], done.stderr
