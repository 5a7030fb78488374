"""`ppvilg serve` as a process: keys, the proxy for fixed hosts, workers and servers that are killed, draining."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ppvilg.serving.store import Store, gallery, jobs, sqlite_url
from tests.serving.running import components, model_folder, tiny  # noqa: F401  (fixtures)
from tests.serving.test_clients import environment, run

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A server process over a folder of data."""

    def __init__(self, model: Path, data: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data, self.url = data, f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "tools/serve.py", "-m", str(model), "--data", str(data), "--port", str(self.port)]
        self.output = open(data.parent / f"output-{self.port}.txt", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=self.output, stderr=self.output, start_new_session=True
        )

    def ready(self) -> Process:
        deadline = time.time() + 120
        while time.time() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(self.said())

    def said(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text()

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        command = ["pgrep", "-f", "ppvilg.serving.worker.process", "-P", str(self.process.pid)]
        listed = subprocess.run(command, capture_output=True, text=True)
        return [int(line) for line in listed.stdout.split()]

    def submit(self, **asked) -> str:
        asked = {"prompt": "三只企鹅", "num_inference_steps": 40, **asked}
        return httpx.post(f"{self.url}/v1/jobs", json=asked, trust_env=False).json()["id"]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def wait_for(store: Store, ids: list[str], seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not all(jobs.find(store, None, id).is_final for id in ids):
        assert time.time() < deadline, [jobs.find(store, None, id).state for id in ids]
        time.sleep(0.1)


def hashes(store: Store, ids: list[str]) -> list[list[str]]:
    found = gallery.of_jobs(store, ids)
    return [[picture.sha256 for picture in found[id]] for id in ids]


def test_killed_workers_and_servers_lose_and_change_nothing(model_folder, tmp_path):  # noqa: F811
    """Nothing is lost, drawn twice or changed, whoever is killed."""
    data = tmp_path / "data"
    server = Process(model_folder, data).ready()
    store = Store(sqlite_url(data / "service.sqlite"))
    seeds = range(12)
    undisturbed = [server.submit(seed=seed) for seed in seeds]
    wait_for(store, undisturbed)
    disturbed = [server.submit(seed=seed) for seed in seeds]
    time.sleep(0.2)
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)
    time.sleep(0.3)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    server = Process(model_folder, data).ready()
    wait_for(store, disturbed)
    assert {jobs.find(store, None, id).state for id in disturbed} == {"done"}
    assert hashes(store, disturbed) == hashes(store, undisturbed)
    last = [server.submit(seed=99, num_images=2), server.submit(seed=100, num_images=40, num_inference_steps=90)]
    time.sleep(0.5)
    assert server.end() == 0, server.said()
    assert jobs.find(store, None, last[0]).state in ("done", "queued")
    states = {jobs.find(store, None, id).state for id in last}
    assert states <= {"done", "queued"}  # drawn to the end or handed back, not lost and not running
    store.close()


def test_keys_and_the_proxy_for_fixed_hosts(model_folder, tmp_path):  # noqa: F811
    data = tmp_path / "data"
    command = [sys.executable, "tools/serve.py", "-m", str(model_folder), "--data", str(data), "--new-key", "me"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ak, sk = re.fullmatch(r"AK: (\w+)\nSK: ([\w-]+)\n", made).groups()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1 and "there is a key named 'me'" in again.stderr and "Traceback" not in again.stderr
    server = Process(model_folder, data, "--redirect", "0").ready()
    try:
        proxy, bundle = re.search(r"HTTPS_PROXY=(\S+) REQUESTS_CA_BUNDLE=(\S+)", server.said()).groups()
        for path in (data / "redirect" / "ca.key", data / "redirect" / "server.key"):
            assert path.stat().st_mode & 0o077 == 0
        trusting = ssl.create_default_context(cafile=bundle)
        with httpx.Client(proxy=proxy, verify=trusting, trust_env=False) as client:
            assert client.get("https://wenxin.baidu.com/healthz").json() == {"status": "ok"}
            for other in ("https://example.com/", "https://wenxin.baidu.com:8443/"):
                with pytest.raises(httpx.ProxyError, match="403"):
                    client.get(other)
        assert httpx.get("http://wenxin.baidu.com/", proxy=proxy, trust_env=False).status_code == 403
        found = run(
            environment("baidu", "erniebot"), "ernie_keys.py", ak, sk, HTTPS_PROXY=proxy, REQUESTS_CA_BUNDLE=bundle
        )
        assert found["urls"][0].startswith("https://aip.baidubce.com/v1/pictures/") and found["bytes"][0] > 100
    finally:
        assert server.end() == 0, server.said()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-m", "nothing"], "nothing"),
        (["--host", "0.0.0.0"], "--new-key"),
        (["--database", "mysql://x"], "database"),
        (["--filter", "nothing:at_all"], "filter"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, words):
    command = [sys.executable, "tools/serve.py", "--data", str(tmp_path / "data"), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and words in result.stderr
    assert result.stderr.count("\n") == 1
