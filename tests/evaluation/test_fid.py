"""The fid suite with an untrained model: what is written, going on after a stop, and everything that is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppvilg.commands import main
from ppvilg.config import load
from ppvilg.emoji.prepare import write_dataset
from ppvilg.evaluation import open_suite
from ppvilg.evaluation.drawing.painter import Painter
from ppvilg.evaluation.drawing.prompts import choose_prompts, read_prompts
from ppvilg.evaluation.drawing.sampling import Sampling
from ppvilg.evaluation.metrics.features import (
    DetectorFeatures,
    ExportedFeatures,
    Pictures,
    Preparation,
    Statistics,
    build_network,
    extract,
)
from ppvilg.evaluation.suites.fid import FidRecipe, FidSuite, table_rows

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "evaluation"
COUNT = 24


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """Shards of real renders."""
    folder = tmp_path_factory.mktemp("reference") / "data"
    write_dataset(folder, 40, seed=5, split="validation")
    return folder


def recipe_for(output: Path, reference: Path, **changes) -> FidRecipe:
    settings = {
        "count": COUNT,
        "num_inference_steps": 2,
        "kid_subset_size": 20,
        "kid_subsets": 5,
        "nearest_k": 3,
        "groups": 4,
        "guidance_scales": [1.0, 3.0],
        "batch_size": 8,
    }
    return FidRecipe(output=str(output), reference=str(reference), **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(model, reference, tmp_path_factory) -> tuple[FidRecipe, dict]:
    recipe = recipe_for(tmp_path_factory.mktemp("fid") / "output", reference, model=model)
    return recipe, FidSuite(recipe).run()


def test_results(finished):
    recipe, report = finished
    written = json.loads((Path(recipe.output) / "results.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report)) and written["suite"] == "fid"
    assert [row["guidance_scale"] for row in written["results"]] == [1.0, 3.0]
    for row in written["results"]:
        assert row["fid"]["value"] > 1 and row["fid"]["interval"][0] < row["fid"]["value"] < row["fid"]["interval"][1]
        assert len(row["generated"]["pictures_sha256"]) == 64
        assert row["kid"]["value"] > 0 and row["kid"]["subset_std"] > 0
        assert 0 <= row["precision"]["value"] <= 1 and row["generated"]["num_inference_steps"] == 2
    assert written["protocol"]["count"] == COUNT and written["reference"]["count"] == 40
    assert written["reference"]["network"] == "detector" and written["reference"]["size"] is None
    assert all(len(written["hashes"][name]) == 64 for name in ("model", "network", "reference_pictures"))
    assert written["versions"]["scipy"]
    lines = FidSuite.summary(FidSuite(recipe), report).splitlines()
    assert lines[0].startswith("| guidance | fid | kid |") and lines[2].startswith("| 1 | ")


def test_page_needs_nothing_else(finished):
    page = (Path(finished[0].output) / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") >= COUNT and page.count("<svg") == 2
    assert 'src="data:image/png;base64,' in page and "<script" not in page
    assert not re.search(r'(src|href|url)=?[("]+https?:', page)


def test_real_pictures_are_nearer_than_drawn_ones(finished, reference, tmp_path):
    """Other real renders, given as a folder of files of their own."""
    folder = tmp_path / "renders"
    folder.mkdir()
    write_dataset(tmp_path / "other", COUNT, seed=9, split="validation")
    pictures = Pictures(tmp_path / "other")
    for i in range(len(pictures)):
        pictures[i].save(folder / f"{i:03d}.png")
    report = FidSuite(recipe_for(tmp_path / "out", reference, pictures=str(folder), guidance_scales=None)).run()
    assert report["results"][0]["fid"]["value"] < 0.5 * finished[1]["results"][0]["fid"]["value"]
    assert report["results"][0]["guidance_scale"] is None and report["hashes"]["model"] is None


def test_going_on_draws_only_what_is_missing(finished, tmp_path, monkeypatch):
    recipe, report = finished
    output = tmp_path / "output"
    shutil.copytree(recipe.output, output)
    lost = [output / "pictures" / "guidance_3" / f"{i:05d}" / "samples" / "0000.png" for i in (3, 17)]
    for path in lost:
        path.unlink()
    drawn = []
    pictures = Painter.pictures

    def count(self, prompts, seeds):
        drawn.extend(prompt["id"] for prompt in prompts)
        return pictures(self, prompts, seeds)

    monkeypatch.setattr(Painter, "pictures", count)
    again = FidSuite(FidRecipe(**{**asdict(recipe), "output": str(output)})).run()
    assert len(drawn) == 2 and all(path.is_file() for path in lost)
    assert again["results"][0] == report["results"][0]
    assert again["results"][1]["fid"]["value"] == pytest.approx(report["results"][1]["fid"]["value"], rel=1e-2)


def test_two_processes_draw_what_one_does(finished, tmp_path):
    recipe, _ = finished
    shutil.copytree(Path(recipe.output) / "pictures" / "guidance_1", tmp_path / "pictures")
    paths = sorted((tmp_path / "pictures").glob("*/samples/0000.png"))
    before = [np.asarray(Image.open(path), int) for path in paths]
    kept = {path: path.stat().st_mtime_ns for path in paths[:12]}
    for path in paths[12:]:
        path.unlink()
    prompts = FidSuite(recipe).prompts
    painter = Painter(Sampling(recipe.model, num_inference_steps=2, guidance_scale=1.0, batch_size=4, processes=2))
    painter.draw(tmp_path / "pictures", prompts)
    assert not painter._loaded  # nothing was left for this process
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for path, picture in zip(paths, before):
        assert np.abs(np.asarray(Image.open(path), int) - picture).max() <= 1
    with pytest.raises(ValueError, match="processes=0: must be at least 1"):
        Sampling(processes=0)


def test_statistics_file_instead_of_pictures(finished, reference, tmp_path):
    recipe, report = finished
    kept = Path(recipe.output) / "reference.npz"
    folder = str(Path(recipe.output) / "pictures" / "guidance_1")
    changes = {"pictures": folder, "guidance_scales": None, "reference_count": 40}
    again = FidSuite(recipe_for(tmp_path / "out", kept, **changes)).run()
    assert again["results"][0]["fid"] == report["results"][0]["fid"]
    assert again["results"][0]["generated"]["guidance_scale"] == 1.0  # from the folder itself
    with np.load(kept) as file:
        assert file["mu"].shape == (96,) and file["sigma"].shape == (96, 96)  # what pytorch-fid reads


# ---- what is refused ----


def refused(recipe: FidRecipe) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        FidSuite(recipe).run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_statistics_of_another_protocol(finished, tmp_path):
    kept = Path(finished[0].output) / "reference.npz"
    given = {"pictures": str(Path(finished[0].output) / "pictures" / "guidance_1"), "guidance_scales": None}
    message = refused(recipe_for(tmp_path / "a", kept, **given, size=[32, 32]))
    assert "another protocol (crop None, not 'centre'; resize None, not 'bicubic'; size None, not [32, 32])" in message
    message = refused(recipe_for(tmp_path / "a", kept, **given, reference_count=41))
    assert "another protocol (count 40, not 41)" in message
    statistics = Statistics.load(kept)
    protocol = {**statistics.protocol, "network_sha256": "0" * 64}
    Statistics(statistics.moments, protocol, statistics.features).save(tmp_path / "network.npz")
    assert "(network_sha256 '0000" in refused(recipe_for(tmp_path / "a", tmp_path / "network.npz", **given))
    Statistics(statistics.moments, statistics.protocol).save(tmp_path / "moments.npz")
    assert "use metrics=[fid]" in refused(recipe_for(tmp_path / "a", tmp_path / "moments.npz", **given))
    report = FidSuite(recipe_for(tmp_path / "b", tmp_path / "moments.npz", **given, metrics=["fid"])).run()
    assert report["results"][0]["fid"]["value"] == pytest.approx(finished[1]["results"][0]["fid"]["value"], rel=1e-9)
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(96), sigma=np.eye(96))
    assert "has no 'protocol' inside" in refused(recipe_for(tmp_path / "a", tmp_path / "foreign.npz", **given))
    (tmp_path / "torn.npz").write_bytes(kept.read_bytes()[:100])
    assert "torn.npz is cut off or damaged" in refused(recipe_for(tmp_path / "a", tmp_path / "torn.npz", **given))
    lacking = {key: value for key, value in statistics.protocol.items() if key != "count"}
    Statistics(statistics.moments, lacking, statistics.features).save(tmp_path / "uncounted.npz")
    assert "uncounted.npz has a protocol without a count" in refused(
        recipe_for(tmp_path / "a", tmp_path / "uncounted.npz", **given)
    )
    assert not (tmp_path / "a").exists()


def test_an_unreadable_picture(finished, reference, tmp_path):
    recipe, _ = finished
    output = tmp_path / "output"
    shutil.copytree(recipe.output, output)
    damaged = output / "pictures" / "guidance_3" / "00005" / "samples" / "0000.png"
    damaged.write_bytes(b"no picture")
    before = (output / "results.json").read_bytes()
    recipe = FidRecipe(**{**asdict(recipe), "output": str(output)})
    message = refused(recipe)
    assert str(damaged) in message and "remove it to have it drawn again" in message
    assert (output / "results.json").read_bytes() == before
    damaged.unlink()
    assert FidSuite(recipe).run()["results"]  # the rest was kept


def test_wrong_numbers_of_pictures(finished, reference, tmp_path, model):
    recipe, _ = finished
    folder = str(Path(recipe.output) / "pictures" / "guidance_1")
    given = {"pictures": folder, "guidance_scales": None}
    message = refused(recipe_for(tmp_path / "a", reference, **given, count=25))
    assert f"{folder} holds 24 pictures, the protocol asks for 25" in message
    assert "holds 40 pictures, the protocol asks for 50" in refused(
        recipe_for(tmp_path / "a", reference, **given, reference_count=50)
    )
    message = refused(recipe_for(tmp_path / "a", reference, model=model, count=41))
    assert "count=41 pictures are asked for, but there are 40 prompts" in message
    message = refused(recipe_for(tmp_path / "a", reference, model=model, count=60, kid_subset_size=41))
    assert message == f"kid_subset_size=41 is too large for the 40 pictures of {reference}"
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused(recipe_for(tmp_path / "a", tmp_path / "empty", model=model))


def test_features_that_are_not_numbers(finished, reference, tmp_path, monkeypatch):
    def broken(self, pixels):
        features = np.zeros((len(pixels), 4), np.float32)
        features[-1, 0] = np.nan
        return features

    monkeypatch.setattr(DetectorFeatures, "__call__", broken)
    message = refused(FidRecipe(**{**asdict(finished[0]), "output": str(tmp_path / "a")}))
    assert "features that are not finite numbers (network=detector)" in message and str(reference) in message


def test_torn_files_of_an_earlier_run_are_made_again(finished, tmp_path):
    recipe = finished[0]
    for name in ("reference.npz", "results.json"):
        (tmp_path / name).write_bytes((Path(recipe.output) / name).read_bytes()[:200])
    (tmp_path / ".reference.npz.x.partial.npz").write_bytes(b"half")  # what a killed run leaves
    with pytest.warns(UserWarning) as warned:
        suite = FidSuite(FidRecipe(**{**asdict(recipe), "output": str(tmp_path)}))
    texts = [str(warning.message) for warning in warned]
    assert any("reference.npz is cut off" in text and "measured again" in text for text in texts)
    assert any("results.json is not readable as JSON" in text and "written anew" in text for text in texts)
    assert suite.kept is None


def test_another_reference_does_not_mix(finished, reference, tmp_path):
    recipe, _ = finished
    write_dataset(tmp_path / "other", 30, seed=6, split="validation")
    message = refused(FidRecipe(**{**asdict(recipe), "reference": str(tmp_path / "other")}))
    assert "reference.npz was measured with another protocol (count 40, not 30" in message
    assert message.endswith("; choose another output")
    message = refused(FidRecipe(**{**asdict(recipe), "seed": 1}))
    assert "holds pictures of another protocol (suite_seed 0, not 1)" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet"}, "network='resnet': use detector, inception or paddle"),
        ({"metrics": ["fid", "is"]}, "metrics[1]='is': use fid, kid or prdc"),
        ({"resize": "nearest"}, "resize='nearest': use box, bilinear, bicubic or lanczos"),
        ({"kid_subset_size": 25}, "kid_subset_size=25 is more than the count=24 pictures"),
        ({"pictures": "x"}, "leave it out with pictures="),
        ({"groups": 1}, "groups=1: must be 0"),
        ({"draw_size": [64]}, "draw_size=[64]: needs 2 numbers, width and height"),
    ],
)
def test_mistakes_in_recipes(changes, message):
    with pytest.raises(ValueError) as caught:
        recipe_for(Path("nowhere"), Path("nowhere"), **changes)
    assert message in str(caught.value)


def test_shipped_recipes_and_the_tool(capsys, tmp_path):
    coco = load(FidRecipe, CONFIGS / "coco30k.yml")
    assert (coco.count, coco.size, coco.network, coco.reference_count) == (30000, [256, 256], "inception", 40504)
    assert load(FidRecipe, CONFIGS / "fid.yml").count == 5000
    assert main(["evaluate", "-c", str(CONFIGS / "coco30k.yml"), "-o", f"output={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("error: data/pt_inception-2015-12-05-6726825d.safetensors is missing")
    with pytest.raises(ValueError, match="suite=fidd: suite 'fidd' is not one of objects, .*fid"):
        open_suite(CONFIGS / "fid.yml", ["suite=fidd"])


# ---- pieces ----


def test_preparation():
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    centre = Preparation((20, 20), "lanczos")(wide)
    assert (np.asarray(centre) == np.asarray(wide.crop((20, 0, 60, 40)).resize((20, 20), Image.LANCZOS))).all()
    whole = Preparation((20, 20), "bicubic", "none")(wide)
    assert (np.asarray(whole) == np.asarray(wide.resize((20, 20), Image.BICUBIC))).all()
    assert Preparation()(wide) is wide and Preparation(resize="box").protocol()["resize"] is None
    with pytest.raises(ValueError, match="crop='middle' is not one of centre, none"):
        Preparation((2, 2), crop="middle")


def test_an_exported_model(tmp_path):
    """Paddle Inference gives what the network gives in Paddle, after the normalisation asked for."""
    import paddle

    paddle.seed(0)
    convolution = paddle.nn.Conv2D(3, 4, 3, stride=2)
    network = paddle.nn.Sequential(convolution, paddle.nn.ReLU(), paddle.nn.AdaptiveAvgPool2D(2))
    network.eval()
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    paddle.jit.save(network, str(tmp_path / "inference"), input_spec=spec)
    features = ExportedFeatures(tmp_path, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    pixels = np.random.default_rng(1).integers(0, 255, (3, 16, 24, 3), dtype=np.uint8)
    values = (pixels / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    expected = network(paddle.to_tensor(values.transpose(0, 3, 1, 2).astype(np.float32))).numpy().reshape(3, 16)
    assert np.abs(features(pixels) - expected).max() < 1e-5
    other = ExportedFeatures(tmp_path / "inference", [0.5, 0.4, 0.3], [0.2, 0.3, 0.5])
    assert other.sha256 != features.sha256
    with pytest.raises(FileNotFoundError, match="no exported model at"):
        build_network("paddle", tmp_path / "else")
    with pytest.raises(ValueError, match="needs weights="):
        build_network("paddle")


def test_features_do_not_depend_on_the_batch(reference):
    pictures, network = Pictures(reference), DetectorFeatures()
    one, first = extract(pictures, Preparation(), network, 1)
    many, second = extract(pictures, Preparation(), network, 64)
    assert first == second and one.shape == (40, 96) and np.abs(one - many).max() < 1e-4
    pixels = np.asarray(pictures[7])[None]
    assert np.abs(network(pixels)[0] - one[7]).max() < 1e-4
    with pytest.raises(ValueError, match="multiples of 8, got 30x20"):
        network(np.zeros((1, 20, 30, 3), np.uint8))


def test_prompts_that_came_with_ppvilg_are_found_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_prompts("configs/prompts/quickstart.txt")) == 16


def test_prompts(tmp_path, reference):
    (tmp_path / "a.txt").write_text("一只猫\n\n两只狗\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == [{"prompt": "一只猫"}, {"prompt": "两只狗"}]
    (tmp_path / "a.jsonl").write_text('{"prompt": "一只猫", "width": 64}\n{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match='a.jsonl:2 has no "prompt"'):
        read_prompts(tmp_path / "a.jsonl")
    captions = [{"image_id": i // 2, "id": i, "caption": f"caption {i} "} for i in range(10)]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": captions}), encoding="utf-8")
    prompts = read_prompts(tmp_path / "coco.json")
    assert prompts[3] == {"prompt": "caption 3", "id": 3, "image_id": 1}
    chosen = choose_prompts(prompts, 4, 0)
    assert chosen == choose_prompts(prompts, 4, 0) != choose_prompts(prompts, 4, 1)
    assert len({each["id"] for each in chosen}) == 4 and choose_prompts(prompts, 10, 3) == prompts
    samples = read_prompts(reference, "en")
    assert len(samples) == 40 and {"prompt", "width", "height", "id"} == set(samples[0])
    with pytest.raises(ValueError, match="has no caption in 'fr'"):
        read_prompts(reference, "fr")
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a file of COCO captions"):
        read_prompts(tmp_path / "other.json")


def test_how_numbers_are_written():
    fid, kid = {"value": 12.345, "interval": [11, 13]}, {"value": 0.01234, "interval": None}
    row = {"guidance_scale": 2, "fid": fid, "kid": kid}
    assert table_rows([row]) == (["guidance", "fid", "kid"], [["2", "12.35 (11.00 to 13.00)", "0.01234"]])
