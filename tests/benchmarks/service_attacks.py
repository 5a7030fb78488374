"""The service under attack, in its long form: what tests/serving/test_attacks.py tries a few times, thousands of times.

    python tests/benchmarks/service_attacks.py [-m emoji64] [--requests 10000] [--pictures 1000] [--seed 0]

Every answer must be below 500 and in JSON; the memory of the server process must not grow by 50 MiB; neither its store
nor its log may hold a secret or a prompt; pictures must not take more of the disk than they may, at any time.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import io
import os
import random
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path

import httpx
import own_tests  # noqa: F401
from PIL import Image

from ppvilg.serving.store import Store, jobs, sqlite_url
from ppvilg.serving.store.keys import new_key
from tests.serving.mutations import BAD_PICTURES, PATHS, mutated
from tests.serving.processes import ServerProcess

MIB = 2**20
DISK_BYTES = 4 * MIB
PROMPT = "没有人该读到这句话"


class Attack:
    """A server with a key under attack."""

    def __init__(self, server: ServerProcess, data: Path) -> None:
        self.server, self.data = server, data
        self.store = Store(sqlite_url(data / "service.sqlite"))
        _, self.secret = new_key(self.store, "attacked")
        headers = {"Authorization": f"Bearer {self.secret}"}
        self.client = httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False)
        self.anonymous = httpx.Client(base_url=server.url, timeout=120, trust_env=False)

    def resident(self) -> int:
        """Bytes of memory that the server process holds."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def on_disk(self) -> int:
        return sum(path.stat().st_size for path in (self.data / "pictures").glob("*/*.png"))

    @contextlib.contextmanager
    def cancelling(self):
        """Cancels every job a moment after it was handed in, for many requests wait for theirs."""
        ended = threading.Event()

        def cancel() -> None:
            while not ended.wait(0.2):
                jobs.cancel(self.store)

        thread = threading.Thread(target=cancel, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(60)

    def mutations(self, count: int, chance: random.Random) -> None:
        statuses: collections.Counter = collections.Counter()
        with self.cancelling():
            for _ in range(count):
                path, text = mutated(chance)
                answer = self.client.post(path, content=text.encode())
                assert answer.status_code < 500, (path, text, answer.text)
                assert answer.headers["content-type"].startswith(("application/json", "text/event-stream")), text
                statuses[answer.status_code] += 1
        print(f"{count} mutated requests: {dict(statuses)}", flush=True)

    def bad_pictures(self, times: int) -> None:
        for kind, content in BAD_PICTURES.items():
            text = base64.b64encode(content).decode() or "A" * 80
            for _ in range(times):
                assert self.client.post("/v1/uploads", content=content).status_code in (413, 422), kind
                for path, asked in (
                    ("/v1/jobs", {"prompt": "猫", "image": f"data:image/png;base64,{text}"}),
                    ("/sdapi/v1/img2img", {"prompt": "猫", "init_images": [text]}),
                    ("/models/emoji64", {"inputs": text, "parameters": {"prompt": ""}}),
                ):
                    assert self.client.post(path, json=asked).status_code in (400, 413, 422), (kind, path)
        print(f"{times} times: {', '.join(BAD_PICTURES)}: refused by every protocol", flush=True)

    def large_bodies(self, times: int) -> None:
        body = b"x" * (20 * MIB)
        for path in PATHS[:times]:
            assert self.client.post(path, content=body).status_code == 413, path
        print(f"{times} bodies of 20 MiB: 413", flush=True)

    def described(self) -> None:
        """schemathesis on our own API, by its description; skipped where it is not installed."""
        places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        program = shutil.which("schemathesis", path=places)
        if program is None:
            print("schemathesis is not installed: pip install schemathesis", flush=True)
            return
        checks = "not_a_server_error,content_type_conformance,response_headers_conformance,status_code_conformance"
        command = [program, "run", f"{self.server.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {self.secret}"]
        command += ["--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", "100", "--no-color"]
        command += ["--exclude-path", "/v1/jobs/{id}/events", "--request-timeout", "60"]
        with self.cancelling():
            told = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=self.data)
        assert told.returncode == 0, told.stdout[-5000:] + told.stderr[-1000:]
        print(f"schemathesis: {told.stdout.strip().splitlines()[-1].strip(' =')}", flush=True)

    def strangers(self) -> None:
        for path in PATHS:
            for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
                assert self.client.post(path, headers=headers, json={}).status_code in (400, 403), (path, headers)
            for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="}, {}):
                answer = self.anonymous.post(path, headers=headers, json={"prompt": PROMPT, "text": PROMPT})
                assert answer.status_code in (200, 400, 401, 403, 404, 422), (path, answer.text)
                assert "image" not in answer.json() and "data" not in str(answer.json().get("images", "")), path
        print("foreign hosts and origins, wrong keys and none: refused", flush=True)

    def fill_the_disk(self, count: int) -> None:
        largest = 0
        for number in range(count):
            packed = io.BytesIO()
            Image.effect_noise((96, 96), 20 + number % 200).convert("RGB").save(packed, format="PNG")
            assert self.client.post("/v1/uploads", content=packed.getvalue()).status_code == 201
            if number % 10 == 9:
                largest = max(largest, self.on_disk())
        assert 0 < largest <= DISK_BYTES, largest
        print(f"{count} pictures: at most {largest / MIB:.2f} of {DISK_BYTES / MIB:.0f} MiB on the disk", flush=True)

    def nothing_is_told(self) -> None:
        token = self.client.post("/oauth/2.0/token", params={"client_id": "x", "client_secret": self.secret}).text
        self.client.post(f"/rpc/2.0/ernievilg/v1/txt2img?access_token={self.secret}", json={"text": PROMPT})
        with self.store.reading() as connection:
            stored = "\n".join(connection.connection.iterdump())
        logged = (self.data / "service.log").read_text(encoding="utf-8")
        assert self.secret not in stored + logged + token
        assert PROMPT not in logged and "answered" in logged and "Traceback" not in logged
        print(f"no secret in {len(stored) >> 10} KiB of store and {len(logged) >> 10} KiB of log", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="emoji64")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        options = "--require-key", "--disk-gb", str(DISK_BYTES / 2**30)
        with ServerProcess(given.model, data, *options) as server:
            attack = Attack(server, data)
            attack.mutations(min(given.requests, 500), random.Random(given.seed - 1))  # what is loaded on first use
            attack.bad_pictures(1)
            attack.large_bodies(3)
            before = attack.resident()
            attack.mutations(given.requests, random.Random(given.seed))
            attack.bad_pictures(20)
            attack.large_bodies(len(PATHS))
            attack.described()
            attack.strangers()
            attack.fill_the_disk(given.pictures)
            attack.nothing_is_told()
            grown = (attack.resident() - before) / MIB
            print(f"the server process grew by {grown:.1f} MiB, from {before / MIB:.0f}")
            assert grown < 50


if __name__ == "__main__":
    main()
