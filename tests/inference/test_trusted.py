"""Nothing that a folder names or holds is imported, read or run unless it is on a list."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from ppvilg.inference import SCHEDULER_CLASSES, load_scheduler, load_tokenizer, read_manifest
from ppvilg.inference.manifest import stored
from ppvilg.inference.residency import DygraphExperts
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.pipelines import SCHEDULERS, ErnieViLG2Pipeline

WEIGHTS = "diffusion_paddle_model.safetensors"


class Bomb:
    """A pickle of this writes a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copied")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A pipeline folder that a test may damage."""
    return shutil.copytree(saved, tmp_path / "pipeline")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), encoding="utf-8")


def relist(bundle, name):
    """Gives a file of tokenizer or scheduler the hash that it has, as whoever changes one on purpose would."""
    files = json.loads((bundle / "manifest.json").read_text("utf-8"))["files"]
    about = stored(bundle / name)
    change(bundle / "manifest.json", files={**files, name: {"sha256": about.sha256, "bytes": about.bytes}})
    for proof in (bundle / "proofs").glob("*.json"):
        change(proof, manifest=stored(bundle / "manifest.json").sha256)


def refused(folder, match, error=ValueError):
    opened = ErnieViLG2Pipeline.from_exported if (folder / "manifest.json").is_file() else None
    with pytest.raises(error, match=match) as caught:
        (opened or ErnieViLG2Pipeline.from_pretrained)(folder)
    assert "\n" not in str(caught.value)


# ---- bundles ----


@pytest.mark.parametrize("name", ["tokenizer/added_tokens.json", "expert_00/more.pdiparams", "run.py", ".hidden"])
def test_files_that_the_manifest_does_not_list(copied, name):
    (copied / name).write_text("{}")
    refused(copied, f"{name} is not listed in manifest.json")


@pytest.mark.parametrize(
    "name", ["../elsewhere.json", "/etc/hostname", "tokenizer/../../x", "tokenizer/a.pkl", "x.bin"]
)
def test_names_that_no_bundle_has(copied, name):
    files = {file: vars(entry) for file, entry in read_manifest(copied).files.items()}
    change(copied / "manifest.json", files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    refused(copied, f"lists '{name}', which no bundle has")


@pytest.mark.parametrize("part", ["../expert_00", "/tmp", "expert_00/..", "weights"])
def test_parts_that_no_bundle_has(copied, part):
    parts = json.loads((copied / "manifest.json").read_text("utf-8"))["parts"]
    change(copied / "manifest.json", parts={**parts, part: parts["expert_00"]})
    refused(copied, f"lists the part '{part}', which no bundle has")


def test_links(copied, tmp_path):
    vocabulary = copied / "tokenizer" / "vocab.txt"
    outside = tmp_path / "vocab.txt"
    shutil.move(vocabulary, outside)
    vocabulary.symlink_to(outside)
    refused(copied, "tokenizer/vocab.txt is a link that leaves the bundle")
    vocabulary.unlink()
    refused(copied, "tokenizer/vocab.txt is missing", FileNotFoundError)
    vocabulary.symlink_to("../../vocab.txt")
    refused(copied, "tokenizer/vocab.txt is a link that leaves the bundle")
    vocabulary.unlink()
    shutil.move(outside, vocabulary)
    (tmp_path / "beside").symlink_to(copied)
    assert ErnieViLG2Pipeline.from_exported(tmp_path / "beside", "cpu")  # the bundle itself may be a link


@pytest.mark.parametrize(
    "name", ["UNet2DConditionModel", "DiffusionPipeline", "os.system", None, ["x"], "HeunScheduler"]
)
def test_foreign_scheduler_classes(copied, name):
    change(copied / "scheduler" / "scheduler_config.json", _class_name=name)
    relist(copied, "scheduler/scheduler_config.json")
    refused(copied, "scheduler_config.json names the scheduler class .*, known are DDIMScheduler")


def test_foreign_tokenizers(copied):
    for values, match in (
        ({"tokenizer_class": "ErnieTinyTokenizer"}, "names the tokenizer class 'ErnieTinyTokenizer'"),
        ({"tokenizer_class": "ErnieTokenizer", "vocab_file": "/etc/passwd"}, "names a file of its own as 'vocab_file'"),
    ):
        change(copied / "tokenizer" / "tokenizer_config.json", **values)
        relist(copied, "tokenizer/tokenizer_config.json")
        refused(copied, match)


def test_each_listed_scheduler_is_built_from_its_config_alone(tmp_path):
    assert set(SCHEDULERS.values()) <= set(SCHEDULER_CLASSES)
    for name in SCHEDULER_CLASSES:
        (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": name, "num_train_timesteps": 7}))
        scheduler = load_scheduler(tmp_path)
        assert type(scheduler).__name__ == name and scheduler.config.num_train_timesteps == 7


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_damaged_configs(tmp_path, content):
    for file, load in (("scheduler_config.json", load_scheduler), ("tokenizer_config.json", load_tokenizer)):
        with pytest.raises(FileNotFoundError, match=file):
            load(tmp_path)
        (tmp_path / file).write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=file):
            load(tmp_path)


# ---- pipeline folders ----


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("vae", ["bomb", "Bomb"]),
        ("unet", ["ppdiffusers", "UNet2DConditionModel"]),
        ("scheduler", ["ppdiffusers", "HeunDiscreteScheduler"]),
        ("tokenizer", ["ppdiffusers.transformers", "BertTokenizer"]),
        ("text_encoder", []),
    ],
)
def test_foreign_components(folder, component, entry, monkeypatch):
    change(folder / "model_index.json", **{component: entry})
    (folder.parent / "bomb.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    refused(folder, f"model_index.json names .* as {component}, known are")


def test_code_in_a_folder(folder):
    (folder / "vae" / "ppdiffusers.py").write_text("raise SystemExit('it was imported')")
    refused(folder, "vae/ppdiffusers.py is code, which no pipeline folder needs")


@pytest.mark.parametrize("weights", [f"vae/{WEIGHTS}", "text_encoder/model.safetensors", f"unet/expert_01/{WEIGHTS}"])
def test_no_pickle_is_read(folder, weights, tmp_path):
    safe = folder / weights
    name = "model_state.pdparams"
    bomb = safe.with_name(name)
    bomb.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    if "text" in weights:
        assert ErnieViLG2Pipeline.from_pretrained(folder)  # the safetensors file beside it is what is read
    safe.unlink()
    refused(folder, f"{name} is a pickle, which can run code when it is read: convert it to safetensors")
    if "unet" in weights:
        with pytest.raises(ValueError, match="is a pickle"):
            MoDEUNet2DConditionModel.from_pretrained(folder / "unet")
    assert not (tmp_path / "boom").exists()


def test_an_index_that_names_a_pickle(folder, tmp_path):
    shards = {"weight_map": {"conv_in.weight": "shard.pdparams"}}
    (folder / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps(shards))
    refused(folder, "index.json names shard.pdparams, which is no safetensors file")


# ---- experts that are read late ----


def test_a_file_that_was_swapped_after_it_was_checked(folder):
    experts = DygraphExperts(folder / "unet", 1)
    expert = experts.load(0, None)
    kept = expert.state_dict()["conv_in.weight"].numpy()
    for index, same_time in ((0, False), (1, True)):
        file = folder / "unet" / f"expert_0{index}" / WEIGHTS
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        other = file.with_name("other")
        shutil.copyfile(folder / "unet" / f"expert_0{1 - index}" / WEIGHTS, other)
        other.replace(file)  # same header, other numbers
        if same_time:
            os.utime(file, ns=times)
        with pytest.raises(ValueError, match=f"expert_0{index}/{WEIGHTS} was changed since the model was loaded"):
            experts.load(index, expert)
    assert (kept == expert.state_dict()["conv_in.weight"].numpy()).all()


def test_damaged_weights_are_named_before_anything_is_read(folder):
    file = folder / "unet" / "expert_01" / WEIGHTS
    content = file.read_bytes()
    for damaged, match in (
        (content[:-9], "is cut off or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is empty"),
        (np.random.default_rng(0).bytes(4096), "is cut off or damaged"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=match):
            DygraphExperts(folder / "unet", 1)
