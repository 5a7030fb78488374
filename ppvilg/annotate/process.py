"""A program of the user's that lives as long as the run and answers line by line, in JSON.

It first says who it is: {"tool": ..., "version": ..., "model": ...}. Then it reads one line for each picture,
{"picture": path of an upright RGB BMP, "width", "height", ...}, and writes one line for each, in order. The pictures of
a batch are asked for together, so that it may gather them; {"flush": true} ends a batch. {"error": reason} as an answer
leaves the sample out.
"""

from __future__ import annotations

import collections
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PREFIX = "command:"
_LAST_LINES = 5
_PATIENCE = 20  # seconds for a program to end when it has nothing more to read


class LineProcess:
    """A running program, and what it said of itself (`about`).

    Raises:
        ValueError: the command is empty, ends, or answers with what is no JSON object; its last words are told.
        FileNotFoundError: there is no such program.
    """

    def __init__(self, spec: str):
        self.command = shlex.split(spec.removeprefix(PREFIX))
        if not self.command:
            raise ValueError(f"{spec!r} names no program: write command:PROGRAM ARGUMENTS")
        if shutil.which(self.command[0]) is None:
            raise FileNotFoundError(f"no such program: {self.command[0]} (in {spec!r})")
        self._folder = tempfile.TemporaryDirectory(prefix="ppvilg-annotate-")
        self._words = collections.deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
                                         bufsize=1)  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.about = self._read()
            if "tool" not in self.about:
                raise ValueError(f'{spec!r}: its first line must say {{"tool": ..., "version": ...}}, not {self.about}')
        except ValueError:
            self.close()
            raise

    def ask(self, pictures: Sequence[Image.Image], fields: Sequence[dict]) -> list[dict]:
        """One answer for each picture; `fields` go into the questions."""
        questions = []
        for number, (picture, more) in enumerate(zip(pictures, fields)):
            path = os.path.join(self._folder.name, f"{number}.bmp")
            picture.save(path)
            questions.append({"picture": path, "width": picture.width, "height": picture.height, **more})
        writer = threading.Thread(target=self._write, args=([*questions, {"flush": True}],))  # it may answer meanwhile
        writer.start()
        answers = [self._read() for _ in questions]
        writer.join()
        return answers

    def close(self) -> None:
        """Tell it that there is no more, wait, and end it if that does not help."""
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(_PATIENCE)
        self._process.stdout.close()
        self._process.stderr.close()
        self._folder.cleanup()

    def _write(self, questions: Sequence[dict]) -> None:
        try:
            for question in questions:
                self._process.stdin.write(json.dumps(question, ensure_ascii=False) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it has ended: the reader says so
            return

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._listener.join(_PATIENCE)
            words = "; ".join(self._words) or "nothing on standard error"
            raise ValueError(f"{self.name} ended with code {self._process.returncode}: {words}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ValueError(f"{self.name} answered {line.strip()[:100]!r}, which is no JSON object")
        return answer

    @property
    def name(self) -> str:
        """The program, for messages."""
        return Path(self.command[0]).name if len(self.command) == 1 else shlex.join(self.command)[:80]

    def _listen(self) -> None:
        for line in self._process.stderr:
            self._words.append(line.strip())
