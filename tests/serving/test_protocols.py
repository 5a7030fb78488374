"""What the clients do not show: PaddleHub's requests, our own API, errors of every protocol in its form."""

from __future__ import annotations

import base64
import io
import json
import time

import httpx
import pytest
from PIL import Image

from ppvilg.serving.access import signing
from ppvilg.serving.model.info import describe, read_model
from tests.serving.running import until

HUB = "/younger/portal/api/rest/1.0/ernievilg/v1/"


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        yield client


def png(width=16, height=16, colour=(9, 99, 199)) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(packed, format="PNG")
    return packed.getvalue()


def drawn(client, **asked) -> dict:
    """A job that has ended."""
    address = "/v1/jobs/" + client.post("/v1/jobs", json={"prompt": "三只企鹅", **asked}).json()["id"]
    until(lambda: client.get(address).json()["state"] not in ("queued", "running"), "the job")
    return client.get(address).json()


# ---- PaddleHub, whose module is not on PyPI: its requests in their order ----


@pytest.mark.parametrize("version", ["1.1.0", "1.3.0"])
def test_paddlehub(client, served, version, monkeypatch):
    pair = {"grant_type": "client_credentials", "client_id": served.ak, "client_secret": served.sk}
    token = client.get("/younger/portal/api/oauth/token", params=pair).json()
    assert token["code"] == 0
    text = "  三只企鹅,  Penguins &amp; “more” \n"
    form = {"access_token": token["data"], "text": text, "style": "油画"}
    if version == "1.1.0":
        form["resolution"] = "1024*1536"
    made = client.post(f"{HUB}txt2img?from=paddlehub", data=form).json()
    assert made["msg"] == "success"
    task = made["data"]["taskId"]

    def poll():
        answer = client.post(f"{HUB}getImg?from=paddlehub", data={"access_token": token["data"], "taskId": task}).json()
        assert (answer["code"], answer["msg"]) == (0, "success")
        assert type(answer["data"]["taskId"]) is type(task) and answer["data"]["waiting"]
        return answer if answer["data"]["status"] == 1 else None

    answer = until(poll, "the pictures")
    assert answer["data"]["text"] == text
    assert len(answer["data"]["imgUrls"]) == 6
    picture = httpx.get(answer["data"]["imgUrls"][0]["image"], trust_env=False)
    assert Image.open(io.BytesIO(picture.content)).size == ((16, 24) if version == "1.1.0" else (16, 16))


def test_paddlehub_asks_for_a_new_token_after_111(client, served, monkeypatch):
    monkeypatch.setattr(signing.time, "time", lambda now=time.time: now() - 40 * 86400)
    old = served.service.authenticator.new_token(served.ak, served.sk)
    monkeypatch.undo()
    form = {"access_token": old, "text": "三只企鹅", "style": ""}
    assert client.post(f"{HUB}txt2img?from=paddlehub", data=form).json()["code"] == 111
    form["access_token"] = "nonsense"
    assert client.post(f"{HUB}txt2img?from=paddlehub", data=form).json()["code"] == 110
    for valid in (served.service.authenticator.new_token(served.ak, served.sk), served.sk):
        form["access_token"] = valid
        assert client.post(f"{HUB}txt2img?from=paddlehub", data=form).json()["code"] == 0


def test_hub_serving(client):
    asked = {"text_prompts": ["三只企鹅", "猫"], "style": "油画", "topk": 2}
    answer = client.post("/predict/ernie_vilg", json=asked).json()
    assert (answer["status"], answer["msg"], len(answer["results"])) == ("000", "", 4)
    assert base64.b64decode(answer["results"][0])[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"style": ""}, 4002),
        ({"text": "猫", "style": "没有"}, 4003),
        ({"text": "猫", "num": "many"}, 4001),
        ({"text": "猫", "resolution": "big"}, 4002),
        ({"text": "不许问的"}, 4001),
    ],
)
def test_portal_codes(client, served, fields, code):
    fields["access_token"] = served.service.authenticator.new_token(served.ak, served.sk)
    answer = client.post(f"{HUB}txt2img", data=fields)
    assert (answer.status_code, answer.json()["code"]) == (200, code)


def test_a_task_of_another_owner_is_not_there(client, served):
    token = served.service.authenticator.new_token(served.ak, served.sk)
    made = client.post(f"{HUB}txt2img", data={"text": "猫", "access_token": token}).json()
    answer = client.post(f"{HUB}getImg", data={"taskId": made["data"]["taskId"]}).json()  # nobody's token: this machine
    assert answer["code"] == 4001 and answer["data"]["status"] == 2


# ---- our own API ----


def test_events_end_with_the_job_and_resume(client):
    job = client.post("/v1/jobs", json={"prompt": "三只企鹅", "num_images": 2, "num_inference_steps": 20}).json()
    events = []
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
    assert events[0]["state"] in ("queued", "running") and events[-1]["state"] == "done"
    revisions = [event["revision"] for event in events]
    assert revisions == sorted(set(revisions))
    last = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(revisions[-1])})
    assert last.status_code == 204
    again = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(revisions[0])})
    assert again.text.count("event: job") == 1
    ended = {(entry["picture"], entry["expert"]) for entry in events[-1]["previews"] if entry["end_of_block"]}
    for entry in events[-1]["previews"]:
        assert Image.open(io.BytesIO(client.get(entry["url"]).content)).size == (16, 16)
        assert client.get(entry["url"].replace("signature=", "signature=x")).status_code == 403
    assert ended <= {(picture, expert) for picture in (0, 1) for expert in (0, 1)}


def test_a_browser_has_its_own_gallery(client, served):
    with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as browser:
        browser.cookies.set("ppvilg_owner", served.service.authenticator.browser_cookie(), domain="127.0.0.1")
        assert browser.get("/v1/me").json()["owner"]["kind"] == "browser"
        job = drawn(browser, num_images=2, seed=5)
        assert job["state"] == "done"
        assert len({entry["expert"] for entry in job["previews"] if entry["end_of_block"]}) == 2  # the strip
        assert [(block["expert"], block["steps"]) for block in job["blocks"]] == [(1, 1), (0, 2)]
        first = browser.get("/v1/pictures?limit=1").json()
        assert [each["seed"] for each in first["pictures"]] == [6]
        assert [each["seed"] for each in browser.get(f"/v1/pictures?before={first['next']}").json()["pictures"]] == [5]
        picture = first["pictures"][0]
        assert client.get(f"/v1/pictures/{picture['id']}").status_code == 404  # of somebody else
        assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 404
        assert browser.delete(f"/v1/pictures/{picture['id']}").status_code == 204
        assert client.get(picture["url"]).status_code == 404


def test_a_picture_is_drawn_again_from_its_png(client):
    picture = drawn(client, seed=11, style="水彩", word_weights={"企鹅": 2.0})["pictures"][0]
    bare = client.get(picture["url"]).content
    assert Image.open(io.BytesIO(bare)).info == {}
    dressed = client.get(picture["url"] + "&metadata=1&download=1")
    assert "attachment" in dressed.headers["content-disposition"]
    found = client.post("/v1/png-info", content=dressed.content).json()
    assert found["settings"] == picture["settings"] and "Seed: 11" in found["text"]["parameters"]
    assert Image.open(io.BytesIO(dressed.content)).tobytes() == Image.open(io.BytesIO(bare)).tobytes()
    expect = {"model_hash": picture["recipe"]["model_hash"], "sha256": [picture["sha256"]]}
    assert drawn(client, **found["settings"], expect=expect)["verification"]["same"]
    other = drawn(client, **{**found["settings"], "word_weights": {}}, expect=expect)["verification"]
    assert not other["same"]
    refused = client.post("/v1/jobs", json={"prompt": "猫", "expect": {"model_hash": "0" * 64}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "other_model")


def test_image_and_mask_by_upload(client):
    image = client.post("/v1/uploads", content=png(16, 16)).json()
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    packed = io.BytesIO()
    mask.save(packed, format="PNG")
    painted = client.post("/v1/uploads", content=packed.getvalue()).json()
    job = drawn(client, image=image["id"], mask=painted["id"])
    assert job["request"]["strength"] == 1.0
    result = Image.open(io.BytesIO(client.get(job["pictures"][0]["url"]).content))
    assert {result.getpixel((x, y)) for x in range(8, 16) for y in range(16)} == {(9, 99, 199)}
    again = drawn(client, image=job["pictures"][0]["id"], strength=0.5)
    assert again["state"] == "done"
    assert client.post("/v1/jobs", json={"prompt": "猫", "image": "nobody's"}).status_code == 404


def test_cancel_and_idempotency(client):
    headers = {"Idempotency-Key": "once"}
    asked = {"prompt": "三只企鹅", "num_images": 8, "num_inference_steps": 100}
    first = client.post("/v1/jobs", json=asked, headers=headers).json()
    assert client.post("/v1/jobs", json=asked, headers=headers).json()["id"] == first["id"]
    client.post(f"/v1/jobs/{first['id']}/cancel")
    until(lambda: client.get(f"/v1/jobs/{first['id']}").json()["state"] == "cancelled", "the end of the job")
    assert first["id"] not in [job["id"] for job in client.get("/v1/jobs?unfinished=true").json()["jobs"]]


def test_the_knowledge_view_is_what_the_model_reads(client, served):
    text = "蓝色背景上的一只[a]龘猫"
    seen = client.post("/v1/knowledge", json={"prompt": text, "style": "水彩", "word_weights": {"背景": 2}}).json()
    assert "".join(word["word"] for word in seen["words"]) == seen["text"] == text + "，水彩"
    assert all(seen["text"][word["start"] : word["end"]] == word["word"] for word in seen["words"])
    knowledge = served.service.knowledge._knowledge
    encoded = knowledge.encode([seen["text"]])
    kept = int(encoded.attention_mask.sum()) - 2
    pieces = []
    for word in seen["words"]:
        pieces += ([f"[{word['mark']}]"] if word["mark"] else []) + word["tokens"]
    ids = knowledge.tokenizer.convert_tokens_to_ids(pieces)
    assert ids[:kept] == encoded.input_ids[0, 1 : 1 + kept].tolist()
    assert seen["tokens"] == len(pieces) + 2 and seen["unknown"] and seen["cut"]
    assert [word["weight"] for word in seen["words"] if word["word"] == "背景"] == [2.0]


def test_the_model_and_its_limits(client):
    model = client.get("/v1/model").json()
    assert model["ready"] and model["loading"] is None and len(model["hash"]) == 64
    assert [(each["width"], each["height"]) for each in model["shapes"]] == [(16, 16), (16, 24), (24, 16)]
    assert (model["num_experts"], model["boundaries"], len(model["styles"])) == (2, [0, 50, 100], 17)
    refused = client.post("/v1/jobs", json={"prompt": "猫", "width": 18})
    assert refused.status_code == 422 and refused.json()["error"]["field"] == "width"
    assert "16 and 20" in refused.json()["error"]["message"]


def test_refusals_have_the_form_that_the_description_says(client):
    """tests/benchmarks/service_attacks.py asks schemathesis, if it is there, about every operation."""
    description = client.get("/openapi.json").json()
    form = description["components"]["schemas"]["Fault"]["required"]
    refused = [
        ("get", "/v1/jobs/{id}", client.get("/v1/jobs/nothing")),
        ("get", "/v1/pictures", client.get(f"/v1/pictures?before={2**70}")),
        ("post", "/v1/jobs", client.post("/v1/jobs", content=b"{")),
        ("post", "/v1/uploads", client.post("/v1/uploads", content=b"no picture")),
        ("get", "/v1/pictures/{id}.png", client.get("/v1/pictures/x.png?expires=1&signature=\u00b2")),
    ]
    for method, path, answer in refused:
        assert 400 <= answer.status_code < 500 and set(answer.json()["error"]) == set(form), answer.text
        documented = description["paths"][path][method]["responses"][str(answer.status_code)]
        assert documented["content"]["application/json"]["schema"]["$ref"].endswith("/Refusal")
    job = drawn(client)
    odd = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "\u00b2".encode("latin-1")})
    assert odd.text.count("event: job") == 1


# ---- OpenAI's retries, the queue's end, rates: in the words of each protocol ----


def test_a_retry_of_openai_is_not_a_second_job(client):
    asked = {"prompt": "三只企鹅", "extra": None, "steps": 30}
    del asked["extra"]
    first = client.post("/v1/images/generations", json=asked).json()["data"][0]["b64_json"]
    second = client.post("/v1/images/generations", json=asked, headers={"x-stainless-retry-count": "1"})
    assert second.json()["data"][0]["b64_json"] == first
    third = client.post("/v1/images/generations", json=asked)
    assert third.json()["data"][0]["b64_json"] != first  # another seed


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/jobs", lambda body: body["error"]["code"] == "not_found"),
        ("/v1/images/nothing", lambda body: body["error"]["type"] == "invalid_request_error"),
        ("/younger/portal/nothing", lambda body: body["code"] == 4001),
        ("/rpc/2.0/ernievilg/v1/nothing", lambda body: body["error_code"] and "code" not in body),
        ("/rpc/2.0/ai_custom/nothing", lambda body: body["error_code"] == 3),
        ("/sdapi/v1/nothing/at/all", lambda body: body["detail"]),
        ("/models/nothing/here", lambda body: isinstance(body["error"], str)),
    ],
)
def test_what_is_not_there_is_said_in_the_protocols_form(client, path, form):
    answer = client.delete(path)
    assert answer.status_code in (404, 405) and form(answer.json()), answer.text


def test_a_model_may_say_what_it_has_learned(client):
    model = client.get("/v1/model").json()
    assert model["styles_learned"] is None and {shape["learned"] for shape in model["shapes"]} == {None}
    shown = describe(read_model("emoji64"), None)
    assert set(shown["styles_learned"]) <= set(shown["styles"])
    assert [shape["learned"] for shape in shown["shapes"]] == [True] * 3
