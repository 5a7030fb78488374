"""Adapters chosen per request: each picture is the one that it is alone, and every protocol says what is wrong."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from ppvilg.commands.serve import main
from ppvilg.knowledge import NewWord
from ppvilg.models.lora import Adapter, AdapterSettings, LowRank, TaughtWord
from ppvilg.models.lora_files import write_adapter
from ppvilg.serving.errors import ServiceError
from ppvilg.serving.model.adapters import OfferedAdapter, chosen, parse_offer, tags_of, take_tags
from ppvilg.serving.model.info import read_model
from tests.bundles import bundle  # noqa: F401  (a fixture)
from tests.serving.desk import Desk
from tests.serving.running import running

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture(scope="module")
def offers(tmp_path_factory) -> dict[str, str]:
    """One that changes all experts, and one that changes the second and knows a fox."""
    folder, random = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    change = {LAYER: LowRank(*(random.standard_normal(shape).astype("f4") for shape in ((2, 16), (8, 2))))}
    word = TaughtWord("狐狸", "n", 1.5, random.standard_normal(16).astype("f4"))
    settings = AdapterSettings(2, [0, 50, 100])
    write_adapter(Adapter(change, settings=settings), folder / "bold.safetensors")
    write_adapter(Adapter(experts={1: change}, settings=settings, words=[word]), folder / "fox.safetensors")
    return {"bold": str(folder / "bold.safetensors"), "小狐": str(folder / "fox.safetensors")}


MIXED = [
    {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "lora": lora, **more}
    for seed, (prompt, steps, lora, more) in enumerate(
        [
            ("三只狐狸", 4, {}, {}),
            ("三只狐狸", 6, {"小狐": 1.0}, {}),
            ("三只狐狸", 5, {"小狐": 0.5, "bold": [0, 1]}, {"sampler": "euler_ancestral"}),
            ("三只狐狸", 7, {"bold": 1.0}, {"word_weights": {"三只": 3.0}}),
            ("三只狐狸", 6, {"小狐": 1.0}, {"word_weights": {"狐狸": 3.0}}),
            ("三只狐狸", 6, {"小狐": 0.0}, {}),
        ]
    )
]


def desk_over(model_folder, path, offers, streams=False):
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    pipeline = open_pipeline(model_folder, max_resident_experts=1 if streams else None)
    painter = PipelinePainter(pipeline, streams, read_model(str(model_folder), offers).adapters)
    return Desk(model_folder, painter, path, adapters=offers)


@pytest.fixture(scope="module")
def desk(model_folder, offers, tmp_path_factory):
    return desk_over(model_folder, tmp_path_factory.mktemp("desk"), offers)


@pytest.fixture(scope="module")
def alone(desk) -> list:
    found = []
    for asked in MIXED:
        job = desk.submit(**asked)
        desk.finish(job)
        assert desk.state(job).state == "done", desk.state(job)
        found.append(desk.hashes(job))
    return found


def test_pictures_of_other_adapters_equal_those_drawn_alone(desk, alone, model_folder, tmp_path):
    together, seen, step = [], [], desk.worker.painter.step
    desk.worker.painter.step = lambda drawings: (seen.append(drawings[0].adapters), step(drawings))[1]
    for number, asked in enumerate(MIXED):
        together.append(desk.submit(f"owner {number % 3}", **asked))
        desk.turn()  # the next one joins those that are under way
    desk.finish(*together)
    assert [desk.hashes(job) for job in together] == alone
    assert len({hash for hashes in alone for hash in hashes}) == len(MIXED)
    changes = sum(one != other for one, other in zip(seen, seen[1:]))
    assert changes < len(seen) / 2  # the weights are not changed with every step
    plain = Desk(model_folder, _plain_painter(model_folder), tmp_path)  # which never heard of adapters
    for place in (0, 5):
        job = plain.submit(**{**MIXED[place], "lora": {}})
        plain.finish(job)
        assert plain.hashes(job) == alone[place]


def _plain_painter(model_folder):
    from ppvilg.pipelines import open_pipeline
    from ppvilg.serving.worker.painter import PipelinePainter

    return PipelinePainter(open_pipeline(model_folder))


def test_streamed_experts_draw_the_same(alone, model_folder, offers, tmp_path):
    streamed = desk_over(model_folder, tmp_path, offers, streams=True)
    jobs = [streamed.submit(f"owner {number}", **asked) for number, asked in enumerate(MIXED)]
    streamed.finish(*jobs)
    assert [streamed.hashes(job) for job in jobs] == alone


@pytest.fixture(scope="module")
def client(model_folder, offers, tmp_path_factory):
    with (
        running(model_folder, tmp_path_factory.mktemp("service"), adapters=offers) as found,
        httpx.Client(base_url=found.url, timeout=120) as opened,
    ):
        yield opened


def test_adapters_of_a1111(client):
    listed = client.get("/sdapi/v1/loras").json()
    assert [(each["name"], each["path"]) for each in listed] == [
        ("bold", "bold.safetensors"),
        ("小狐", "fox.safetensors"),
    ]
    assert client.post("/sdapi/v1/refresh-loras").status_code == 200
    asked = {"prompt": "三只狐狸 <lora:小狐:0.5><lora:bold:0,1>", "seed": 2, "steps": 5, "sampler_name": "Euler"}
    answer = client.post("/sdapi/v1/txt2img", json=asked).json()
    info = json.loads(answer["info"])
    assert info["prompt"] == "三只狐狸 <lora:bold:0,1><lora:小狐:0.5>" and "Lora hashes" in info["infotexts"][0]
    job = client.get("/v1/jobs").json()["jobs"][0]
    assert job["request"]["lora"] == {"bold": [0, 1], "小狐": 0.5} and job["request"]["prompt"] == "三只狐狸"
    picture = job["pictures"][0]
    assert picture["model"]["lora"].keys() == {"bold", "小狐"} and not any(
        "cannot read" in each for each in job["warnings"]
    )
    png = client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
    assert png["parameters"]["lora"] == job["request"]["lora"]
    again = client.post("/v1/jobs", json={**job["request"], "expect": {"sha256": [picture["sha256"]]}}).json()
    while client.get(f"/v1/jobs/{again['id']}").json()["state"] not in ("done", "failed"):
        pass
    assert client.get(f"/v1/jobs/{again['id']}").json()["verification"]["same"]


def test_names_that_are_not_there_are_refused_in_each_protocols_form(client):
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "猫 <lora:none:1>"})
    assert answer.status_code == 422 and "unknown lora 'none'; there are bold、小狐" in answer.json()["detail"]
    answer = client.post("/v1/jobs", json={"prompt": "猫", "lora": {"none": 1}})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "lora"
    answer = client.post("/v1/images/generations", json={"prompt": "猫", "lora": {"none": 1}})
    assert answer.status_code in (400, 422) and "unknown lora" in answer.json()["error"]["message"]
    answer = client.post("/", json={"inputs": "猫", "parameters": {"lora": {"none": 1}}})
    assert answer.status_code == 400 and "unknown lora" in answer.json()["error"]


def test_what_a_model_offers_and_how_words_are_read_with_it(client):
    offered = client.get("/v1/model").json()["lora"]
    assert [(each["name"], each["words"]) for each in offered] == [("bold", []), ("小狐", ["狐狸"])]
    with_it, without = (
        client.post("/v1/knowledge", json={"prompt": "三只狐狸", "lora": lora}).json() for lora in ({"小狐": 1}, {})
    )
    assert without["unknown"] == ["狐", "狸"] and with_it["unknown"] == []
    word = with_it["words"][-1]
    assert (word["word"], word["mark"], word["tokens"], word["weight"]) == ("狐狸", "n", ["狐狸"], 2.5)


OFFERED = {
    name: OfferedAdapter(name, None, "", words)
    for name, words in (("a", (NewWord("狐狸"),)), ("b", (NewWord("狐狸"),)), ("c", ()))
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"none": 1}, "unknown lora 'none'; there are a、b、c"),
        (["a"], "lora must be an object"),
        ({"a": "1"}, "scale of lora 'a' must be from -10 to 10"),
        ({"a": float("nan")}, "scale of lora 'a'"),
        ({"a": 11}, "scale of lora 'a'"),
        ({"a": [1, 2, 3]}, "'a' has 3 scales, the model 2 experts"),
        ({"a": 1, "b": [0, 1]}, "'a' and 'b' both teach '狐狸'"),
    ],
)
def test_choices_that_are_refused(value, said):
    with pytest.raises(ServiceError, match=said):
        chosen(value, OFFERED, 2)


def test_choices_that_are_taken():
    assert chosen({"b": 0, "a": 1, "c": [0, 0.5]}, OFFERED, 2) == {"a": 1.0, "b": 0.0, "c": [0.0, 0.5]}
    assert take_tags("a <lora:c> cat<lora:a:0.5>") == ("a cat", {"c": 1.0, "a": 0.5})
    assert take_tags("a  <b> cat") == ("a  <b> cat", {})
    assert take_tags(tags_of({"c": [0.0, 0.5], "a": 1.0}))[1] == {"c": [0.0, 0.5], "a": 1.0}
    with pytest.raises(ServiceError, match="write <lora:name:scale>"):
        take_tags("a <lora:c:much>")


def test_offers_of_the_command_line(model_folder, offers, bundle, tmp_path, capsys):  # noqa: F811
    assert parse_offer("小狐=a/b=c.safetensors") == ("小狐", "a/b=c.safetensors")
    assert parse_offer("a/b.safetensors") == ("b", "a/b.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 9)
    fox = f"fox={offers['小狐']}"
    for model, given, said in (
        (model_folder, ["a:b=x"], "write NAME=PATH"),
        (model_folder, ["fox=none.safetensors"], "none.safetensors is missing"),
        (model_folder, [f"torn={tmp_path / 'torn.safetensors'}"], "torn.safetensors"),
        (model_folder, [fox, fox], "two adapters have the name 'fox'"),
        (bundle, [fox], "is a bundle"),
    ):
        options = [option for each in given for option in ("--lora", each)]
        assert main(["-m", str(model), "--data", str(tmp_path / "data"), "--port", "0", *options]) == 1
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1, message
