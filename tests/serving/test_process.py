"""`ppvilg serve` as a command and as a process: keys, the proxy for fixed hosts, killed workers, draining, mistakes."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import ssl

import httpx
import pytest

from ppvilg.commands import serve
from ppvilg.serving.store import Store, gallery, jobs, sqlite_url
from ppvilg.serving.store.keys import key_of, new_key
from ppvilg.serving.worker import process
from tests.serving.processes import ServerProcess
from tests.serving.running import free_port, until
from tests.serving.test_clients import environment, run


@pytest.fixture
def command(capsys):
    """(exit code, standard output, standard error) of the command in this process, whose logs it leaves alone."""
    logger = logging.getLogger("ppvilg.serving")
    before = logger.handlers, logger.propagate, logger.level

    def call(*arguments: str) -> tuple[int, str, str]:
        code = serve.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    yield call
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def test_a_killed_worker_and_a_server_that_ends_lose_and_change_nothing(model_folder, tmp_path):
    """tests/benchmarks/kills.py does so at random, servers killed too."""
    data = tmp_path / "data"
    store = Store(sqlite_url(tmp_path / "data.sqlite"))
    try:
        with ServerProcess(model_folder, data, "--database", sqlite_url(tmp_path / "data.sqlite")) as server:
            undisturbed = [server.submit(seed=seed) for seed in range(6)]
            until(lambda: are_done(store, undisturbed), "the first jobs")
            disturbed = [server.submit(seed=seed, num_inference_steps=40) for seed in range(6)]
            until(lambda: any(gallery.of_jobs(store, disturbed).values()), "the first picture")
            [worker] = server.workers()
            os.kill(worker, signal.SIGKILL)
            until(lambda: are_done(store, disturbed), "the jobs of the killed worker")
            assert hashes(store, disturbed) == hashes(store, undisturbed)
            last = [server.submit(seed=99, num_images=2), server.submit(num_images=40, num_inference_steps=90)]
            until(lambda: jobs.find(store, None, last[0]).state != "queued", "the last jobs")
            assert server.end() == 0, server.said()
        states = {jobs.find(store, None, id).state for id in last}
        assert states <= {"done", "queued"}  # drawn to the end or handed back, not lost and not running
    finally:
        store.close()


def are_done(store: Store, ids: list[str]) -> bool:
    states = {jobs.find(store, None, id).state for id in ids}
    assert states <= {"queued", "running", "done"}, states
    return states == {"done"}


def hashes(store: Store, ids: list[str]) -> list[list[str]]:
    found = gallery.of_jobs(store, ids)
    return [[picture.sha256 for picture in found[id]] for id in ids]


def test_a_worker_whose_server_is_gone_hands_everything_back():
    asked = []

    class Listening:
        def stop(self, drain_seconds=0.0):
            asked.append(drain_seconds)

    process.take_orders(Listening(), io.BytesIO(b"drain 3\n"))
    assert asked == [3.0, 0.0]


def test_keys_are_printed_once(model_folder, tmp_path, command):
    asked = "-m", model_folder, "--data", tmp_path / "data", "--new-key", "me"
    code, made, _ = command(*asked)
    ak, sk = re.fullmatch(r"AK: (\w+)\nSK: ([\w-]+)\n", made).groups()
    assert code == 0
    code, _, said = command(*asked)
    assert code == 1 and said.startswith("error: there is a key named 'me' already")
    assert command(*asked[:4], "--revoke-key", "me")[0] == 0
    store = Store(sqlite_url(tmp_path / "data" / "service.sqlite"))
    assert key_of(store, ak=ak, sk=sk) is None
    store.close()


def test_the_proxy_for_fixed_hosts(model_folder, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install ppvilg[serve]")
    data = tmp_path / "data"
    with ServerProcess(model_folder, data, "--redirect", str(free_port())) as server:
        proxy, bundle = re.search(r"HTTPS_PROXY=(\S+) REQUESTS_CA_BUNDLE=(\S+)", server.said()).groups()
        for path in (data / "redirect" / "ca.key", data / "redirect" / "server.key"):
            assert path.stat().st_mode & 0o077 == 0
        trusting = ssl.create_default_context(cafile=bundle)
        with httpx.Client(proxy=proxy, verify=trusting, trust_env=False, timeout=30) as client:
            assert client.get("https://wenxin.baidu.com/healthz").json() == {"status": "ok"}
            for other in ("https://example.com/", "https://wenxin.baidu.com:8443/"):
                with pytest.raises(httpx.ProxyError, match="403"):
                    client.get(other)
        assert httpx.get("http://wenxin.baidu.com/", proxy=proxy, trust_env=False, timeout=30).status_code == 403
        python = environment("baidu", "erniebot")
        store = Store(sqlite_url(data / "service.sqlite"))
        ak, sk = new_key(store, "me")
        store.close()
        found = run(python, "ernie_keys.py", ak, sk, HTTPS_PROXY=proxy, REQUESTS_CA_BUNDLE=bundle)
        assert found["urls"][0].startswith("https://aip.baidubce.com/v1/pictures/") and found["bytes"][0] > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-m", "nothing"], "nothing"),
        (["--host", "0.0.0.0"], "--new-key"),
        (["--database", "mysql://x"], "database"),
        (["--filter", "nothing:at_all"], "filter"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, command, options, words):
    code, _, said = command("--data", tmp_path / "data", *options)
    assert code == 1 and said.startswith("error: ") and words in said
    assert said.count("\n") == 1
