"""Defaults that let nobody in: each attack is answered with a clear refusal in its protocol's form."""

from __future__ import annotations

import base64
import json
import os
import random
import socket

import httpx
import pytest

from ppvilg.serving.access.identity import COOKIE
from ppvilg.serving.operation import tidy
from ppvilg.serving.store import gallery, jobs
from tests.serving.mutations import BAD_PICTURES, mutated, noise
from tests.serving.running import running


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        yield client


# How each protocol takes a picture, and how it says no.
PICTURES = {
    "v1": ("/v1/jobs", lambda x: {"prompt": "猫", "image": x}, lambda body: body["error"]["code"]),
    "a1111": ("/sdapi/v1/img2img", lambda x: {"prompt": "猫", "init_images": [x]}, lambda body: body["error"]),
    "cloud": ("/rpc/2.0/ernievilg/v1/txt2img", lambda x: {"text": "猫", "image": x}, lambda body: body["error_code"]),
    "huggingface": ("/models/tiny", lambda x: {"inputs": x, "parameters": {"prompt": ""}}, lambda body: body["error"]),
}
@pytest.mark.parametrize("protocol", PICTURES)
@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(client, protocol, kind):
    path, body, code = PICTURES[protocol]
    text = base64.b64encode(BAD_PICTURES[kind]).decode()
    if len(text) <= 64:  # as short as an id
        text = f"data:image/png;base64,{text or 'A' * 60}"
    answer = client.post(path, json=body(text))
    assert code(answer.json()), answer.text
    assert answer.status_code in ((200, 422) if protocol == "cloud" else (400, 422)), answer.text


@pytest.mark.parametrize("text", ["!!! not base64" * 9, "http://127.0.0.1:1/a.png" + "?" * 60, "file:///etc" * 9])
def test_what_is_no_base64_and_addresses(client, text):
    for path, body, code in PICTURES.values():
        assert code(client.post(path, json=body(text)).json())


def test_a_body_of_20_mib(client):
    for path in ("/v1/uploads", "/v1/images/generations", "/younger/portal/api/rest/1.0/ernievilg/v1/txt2img"):
        assert client.post(path, content=b"x" * (20 * 2**20)).status_code == 413
    pieces = (b"x" * 2**20 for _ in range(20))  # without a length
    try:
        assert client.post("/v1/uploads", content=pieces).status_code == 413
    except httpx.TransportError:
        pass  # the connection may be closed before everything is sent


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "169.254.169.254"])
def test_a_foreign_host(client, host):
    answer = client.get("/v1/me", headers={"Host": host})
    assert answer.status_code in (400, 403)
    assert client.post("/sdapi/v1/txt2img", headers={"Host": host}, json={}).status_code in (400, 403)


def test_a_foreign_origin(client, served):
    here = f"127.0.0.1:{served.port}"
    for origin in ("http://evil.example", "null", f"http://localhost:{served.port}", f"http://{here}.evil.example"):
        answer = client.post("/v1/jobs", headers={"Origin": origin}, content=b'{"prompt":"x"}')
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    assert client.post("/v1/jobs", headers={"Origin": served.url}, json={"prompt": "猫"}).status_code == 202
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/v1/jobs", headers=embedded).status_code == 403
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/jobs", headers=preflight).status_code == 403


def test_headers_of_every_answer(client):
    for path in ("/healthz", "/v1/model", "/nothing", "/v1/jobs/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_no_path_leads_out_of_the_page(client, served, tmp_path):
    up = ("/../service.py", "/%2e%2e/service.py", "/..%2f..%2fsetup.py", "/js/..%5c..%5cservice.py", "//etc/passwd")
    for path in (*up, "/service.py", "/__init__.py", "/.git/config", "/\0.html"):
        with socket.create_connection(("127.0.0.1", served.port), 30) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1"))
            status = raw.recv(20)
        assert status.split()[1] in (b"400", b"404", b"422"), (path, status)


def test_ids_are_not_paths(client, served):
    secret = served.service.folder.root / "signing.key"
    assert secret.stat().st_mode & 0o077 == 0
    for id in ("..%2f..%2fsigning.key", "../../signing", "....", "%00", "a" * 3000):
        for path in (f"/v1/pictures/{id}", f"/v1/pictures/{id}.png?expires=1&signature=x", f"/v1/uploads/{id}.png",
                     f"/v1/jobs/{id}/previews/0/1?expires=1&signature=x"):  # fmt: skip
            assert client.get(path).status_code in (400, 403, 404, 414, 422)


def test_a_symlink_in_the_folder_is_not_served_by_its_name(client, served):
    link = served.service.folder.root / "pictures" / "aa"
    link.mkdir(exist_ok=True)
    os.symlink("/etc/passwd", link / ("a" * 64 + ".png"))
    assert client.get(f"/v1/pictures/{'a' * 64}").status_code == 404


def test_without_a_key(model_folder, tmp_path_factory):
    with running(model_folder, tmp_path_factory.mktemp("closed"), draws=False, require_key=True) as closed:
        with httpx.Client(base_url=closed.url, timeout=20, trust_env=False) as client:
            assert client.get("/v1/me").json()["needs_key"]
            assert "set-cookie" not in client.get("/").headers
            assert client.post("/v1/session", json={"key": "wrong"}).status_code == 401
            stolen = closed.service.authenticator.browser_cookie()
            for cookie in ("", f"{COOKIE}={stolen}", f"{COOKIE}=browser:x.9999999999.x"):
                assert client.get("/v1/jobs", headers={"Cookie": cookie}).json()["error"]["code"] == "no_key"
            forms = {
                "/v1/jobs": lambda body: body["error"]["code"] == "no_key",
                "/v1/images/generations": lambda body: body["error"]["code"] == "invalid_api_key",
                "/sdapi/v1/txt2img": lambda body: body["error"] == "no_key",
                "/models/tiny": lambda body: body["error"],
                "/rpc/2.0/ernievilg/v1/txt2img": lambda body: body["error_code"] == 110,
                "/rpc/2.0/ai_custom/v1/wenxinworkshop/text2image/sd_xl": lambda body: body["error_code"] == 110,
                "/moduleApi/portal/api/rest/1.0/ernievilg/v1/txt2img": lambda body: body["code"] == 110,
                "/predict/ernie_vilg": lambda body: body["status"] == "110",
            }
            fields = {"prompt": "猫", "text": "猫", "inputs": "猫", "text_prompts": ["猫"]}
            for path, form in forms.items():
                asked = {"prompt": "猫"} if path.startswith("/v1/") else fields
                assert form(client.post(path, json=asked).json()), path
            pair = {"client_id": "a", "client_secret": "b"}
            assert client.post("/moduleApi/portal/api/oauth/token", json=pair).json()["code"] == 110
            assert client.get("/oauth/2.0/token", params=pair).status_code == 401


def test_nothing_secret_is_in_store_or_log(served, client, caplog):
    token = served.service.authenticator.new_token(served.ak, served.sk)
    with caplog.at_level("INFO", "ppvilg.serving"):
        client.post(f"/rpc/2.0/ernievilg/v1/txt2img?access_token={token}", json={"text": "秘密的猫"})
        client.get("/v1/me", headers={"Authorization": f"Bearer {served.sk}"})
    with served.service.store.reading() as connection:
        stored = "\n".join(connection.connection.iterdump())
    logged = json.dumps([vars(record) for record in caplog.records], default=str, ensure_ascii=False)
    assert "answered" in logged
    for secret in (served.sk, token, token.rpartition(".")[2]):
        assert secret not in stored and secret not in logged
    assert "秘密的猫" not in logged


def test_mutated_requests_do_no_harm(client, served, caplog):
    """Mutated bodies of every protocol are answered in its form, without a traceback."""
    chance = random.Random(7)
    for number in range(150):
        path, text = mutated(chance)
        answer = client.post(path, content=text.encode())
        if number % 10 == 9:
            jobs.cancel(served.service.store, "local")
        assert answer.status_code < 500, (text, answer.text)
        assert answer.headers["content-type"].startswith(("application/json", "text/event-stream")), text
    nested = "[" * 100_000
    assert client.post("/v1/jobs", content=nested.encode()).status_code == 422
    assert client.post("/sdapi/v1/txt2img", content=nested.encode()).status_code == 422
    jobs.cancel(served.service.store, "local")
    assert [record for record in caplog.records if record.exc_info] == []


def test_the_disk_cap_holds(model_folder, tmp_path_factory, monkeypatch):
    data = tmp_path_factory.mktemp("small")
    with running(model_folder, data, draws=False, disk_bytes=20_000) as small:
        with httpx.Client(base_url=small.url, timeout=60, trust_env=False) as client:
            for number in range(40):
                assert client.post("/v1/uploads", content=noise(32, number)).status_code == 201
        left = sum(path.stat().st_size for path in (data / "pictures").glob("*/*.png"))
        assert 0 < left <= 20_000
        monkeypatch.setattr("ppvilg.serving.operation.ORPHAN_SECONDS", -1.0)
        orphan = small.service.folder.put(b"nobody's")
        tidy(small.service)
        assert not small.service.folder.picture(orphan).exists()
        with small.service.store.reading() as connection:
            assert gallery.unneeded(connection, {orphan}) == {orphan}
