"""One-expert jobs, and experts as folders: split, assembled, merged, judged; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from engine_tiny import load_tool

from ppvilg.config import ConfigError
from ppvilg.engine import experts
from ppvilg.engine.checkpoint import hash_folder
from ppvilg.models import MoDEUNet2DConditionModel

WEIGHTS = "diffusion_paddle_model.safetensors"


@pytest.fixture(scope="module")
def jobs(make_run, finished, tmp_path_factory):
    """Folders of three jobs that each trained one expert, from copies of one base."""
    folders = []
    for expert in range(3):
        output = tmp_path_factory.mktemp("job") / "out"
        shutil.copytree(finished, output, ignore=shutil.ignore_patterns("experts", "checkpoints", ".lock"))
        for name in ("vae", "base"):
            shutil.copytree(finished / "checkpoints" / name, output / "checkpoints" / name)
        folders.append(make_run(output, f"train.experts=[{expert}]").run())
    return folders


@pytest.fixture
def base(finished):
    return finished / "base"


def weights(folder: Path, expert: int) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "unet" / f"expert_{expert:02d}" / WEIGHTS)


def changed(folder: Path, to: Path, file: str, **values) -> Path:
    """A copy of a pipeline folder with values of one JSON file changed."""
    shutil.copytree(folder, to)
    settings = json.loads((to / file).read_text(encoding="utf-8"))
    (to / file).write_text(json.dumps(settings | values), encoding="utf-8")
    return to


def test_jobs_without_a_link_train_the_experts_of_one_run_bit_for_bit(jobs, finished, tmp_path):
    assert [job.name for job in jobs] == ["experts_00", "experts_01", "experts_02"]
    chosen = experts.assemble(jobs, tmp_path / "whole")
    assert chosen == {k: job / "unet" / f"expert_{k:02d}" for k, job in enumerate(jobs)}
    assert hash_folder(tmp_path / "whole") == hash_folder(finished / "experts")


def test_a_job_has_nothing_of_the_other_experts(jobs):
    assert [path.name for path in sorted((jobs[1] / "unet").glob("expert_*"))] == ["expert_01"]
    from engine_tiny import newest

    names = newest(jobs[1].parent, "experts_01")["net"]
    assert names and all(name.startswith("unet.experts.1.") for name in names)
    model = MoDEUNet2DConditionModel.from_pretrained(str(jobs[1] / "unet"), experts=[1])
    assert model.loaded_experts == [1] and model.num_experts == 3


def test_two_chosen_experts_in_one_job(make_run, finished, jobs, tmp_path):
    output = tmp_path / "out"
    for name in ("vae", "cache", "tokenizer"):
        shutil.copytree(finished / name, output / name)
    still = [f"train.{stage}.{key}=0" for stage in ("vae", "base") for key in ("steps", "warmup_steps")]
    folder = make_run(output, *still, "train.experts.only=[2,0]", f"train.experts.start={finished / 'base'}").run()
    assert folder.name == "experts_00_02"
    for expert in (0, 2):
        assert hash_folder(folder / "unet" / f"expert_{expert:02d}") == hash_folder(
            jobs[expert] / "unet" / f"expert_{expert:02d}")


def test_gaps_and_overlaps_are_refused(jobs, finished, tmp_path):
    with pytest.raises(ConfigError, match="gap: no folder has expert 1, which owns timesteps 30 to 59"):
        experts.assemble([jobs[0], jobs[2]], tmp_path / "gap")
    with pytest.raises(ConfigError, match="overlap: expert 2 is in .*experts and in .*experts_02; .*--replace 2"):
        experts.assemble([finished / "experts", jobs[2]], tmp_path / "overlap")
    with pytest.raises(ConfigError, match="gap: no folder has expert 0.*overlap: expert 2"):
        experts.assemble([jobs[2], jobs[2], jobs[1]], tmp_path / "both")
    assert not list(tmp_path.iterdir())
    experts.assemble([finished / "experts", jobs[2]], tmp_path / "replaced", replace=[2])
    assert hash_folder(tmp_path / "replaced") == hash_folder(finished / "experts")
    with pytest.raises(ConfigError, match="is there already"):
        experts.assemble(jobs, tmp_path / "replaced")


@pytest.mark.parametrize("file, values, message", [
    ("scheduler/scheduler_config.json", {"beta_end": 0.03}, r"beta_end is 0.03 and 0.02: betas differ"),
    ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon' and 'v_pred"),
    ("text_encoder/config.json", {"hidden_dropout_prob": 0.3}, r"text_encoder differs \(SHA-256"),
    ("vae/config.json", {"scaling_factor": 2.0}, r"vae differs \(SHA-256"),
    ("unet/config.json", {"boundaries": [0, 20, 60, 90]}, r"boundaries are \[0, 20, 60, 90\] and \[0, 30, 60, 90\]"),
])
def test_parts_that_do_not_belong_together(jobs, tmp_path, file, values, message):
    other = changed(jobs[1], tmp_path / "other", file, **values)
    with pytest.raises(ConfigError, match=message):
        experts.assemble([jobs[0], other, jobs[2]], tmp_path / "whole")


def test_a_model_shipped_in_float16_belongs_to_what_was_trained_from_it(jobs, tmp_path):
    from safetensors.numpy import load_file, save_file

    hashes = {}
    for dtype in (np.float16, np.float32):
        folder = tmp_path / dtype.__name__
        shutil.copytree(jobs[0], folder)
        for component in ("text_encoder", "vae"):
            (file,) = (folder / component).glob("*.safetensors")
            weights = {name: value.astype(np.float16).astype(dtype) for name, value in load_file(file).items()}
            save_file(weights, file, metadata={"format": "pd"})
        for file in (folder / "tokenizer").glob("*.json"):
            indent = 1 if dtype is np.float16 else None
            content = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(content, indent=indent), encoding="utf-8")
        hashes[dtype] = experts.read_job(folder).shared
    assert hashes[np.float16] == hashes[np.float32] != experts.read_job(jobs[0]).shared


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_other_weights_are_found_by_their_hash(jobs, tmp_path, component):
    other = tmp_path / "other"
    shutil.copytree(jobs[1], other)
    (file,) = (other / component).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{component} differs"):
        experts.assemble([jobs[0], other, jobs[2]], tmp_path / "whole")


def test_the_hash_is_of_contents_not_of_versions_or_order(jobs, tmp_path):
    from safetensors.numpy import load_file, save_file

    other = changed(jobs[1], tmp_path / "other", "text_encoder/config.json", paddlenlp_version="9.9")
    (file,) = (other / "vae").glob("*.safetensors")
    save_file(dict(reversed(load_file(file).items())), file, metadata={"format": "pd", "note": "other"})
    assert hash_folder(other / "vae") != hash_folder(jobs[1] / "vae"), "the files do differ"
    first, same = experts.read_job(jobs[0]), experts.read_job(other)
    assert same.shared == first.shared
    experts.check_same_model([first, same])
    with pytest.raises(ConfigError, match="vae differs"):  # the hash does tell contents apart
        experts.check_same_model([first, dataclasses.replace(same, shared=same.shared | {"vae": "0" * 64})])


def test_split_gives_copies(base, tmp_path):
    assert experts.split(base, tmp_path / "three", 3) == [0, 0, 0]
    model = MoDEUNet2DConditionModel.from_pretrained(str(tmp_path / "three" / "unet"))
    assert model.boundaries == [0, 30, 60, 90]
    for expert in range(3):
        assert hash_folder(tmp_path / "three" / "unet" / f"expert_{expert:02d}") == hash_folder(
            base / "unet" / "expert_00")
    from ppvilg import ErnieViLG2Pipeline

    ErnieViLG2Pipeline.from_pretrained(tmp_path / "three")


def test_twice_as_many_halve_every_block(finished, tmp_path):
    assert experts.split(finished / "experts", tmp_path / "six", 6) == [0, 0, 1, 1, 2, 2]
    assert experts.read_job(tmp_path / "six").boundaries == (0, 15, 30, 45, 60, 75, 90)
    assert experts.split(finished / "experts", tmp_path / "own", 2, [0, 70, 90]) == [1, 2]
    with pytest.raises(ConfigError, match="gap"):
        experts.split(finished / "experts", tmp_path / "gap", 2, [0, 30, 80])
    with pytest.raises(ConfigError, match="is there already"):
        experts.split(finished / "experts", tmp_path / "six", 6)


def test_training_goes_on_from_twice_as_many(make_run, finished, tmp_path):
    """Experts that start from a split pipeline have its weights; without a learning rate they keep them."""
    experts.split(finished / "experts", tmp_path / "six", 6)
    output = tmp_path / "out"
    for name in ("vae", "cache", "tokenizer"):
        shutil.copytree(finished / name, output / name)
    still = [f"train.{stage}.{key}=0" for stage in ("vae", "base") for key in ("steps", "warmup_steps")]
    still += ["train.experts.learning_rate=0.0", "train.experts.weight_decay=0.0", "train.experts.steps=2"]
    make_run(output, *still, "model.num_experts=6", f"train.experts.start={tmp_path / 'six'}").run()
    for expert in range(6):
        one, other = weights(output / "experts", expert), weights(finished / "experts", expert // 2)
        for name, value in one.items():  # averages of equal weights, so up to rounding
            np.testing.assert_allclose(value, other[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_merge_is_the_mean_by_timesteps(finished, tmp_path):
    experts.split(finished / "experts", tmp_path / "two", 2, [0, 70, 90])
    experts.merge(tmp_path / "two", tmp_path / "merged")
    one, other, merged = weights(tmp_path / "two", 0), weights(tmp_path / "two", 1), weights(tmp_path / "merged", 0)
    for name, value in merged.items():
        np.testing.assert_allclose(value, (70 * one[name] + 20 * other[name]) / 90, rtol=1e-5, atol=1e-7)
    assert experts.read_job(tmp_path / "merged").boundaries == (0, 90)
    from ppvilg import ErnieViLG2Pipeline

    assert ErnieViLG2Pipeline.from_pretrained(tmp_path / "merged").unet.num_experts == 1


def test_status_says_what_is_where_and_what_is_missing(jobs):
    table = experts.status([jobs[0], jobs[2]]).splitlines()
    assert [line.split()[:2] for line in table[1:4]] == [["0", "0-29"], ["1", "30-59"], ["2", "60-89"]]
    assert "missing" in table[2] and str(jobs[2]) in table[3] and "gap: no folder has expert 1" in table[4]
    assert "not one model" not in experts.status(jobs)


def test_a_retrained_expert_is_judged_among_the_others(base, finished, world, tmp_path, capsys, monkeypatch):
    experts.split(base, tmp_path / "copies", 3)
    arguments = ["experts.py", "validate", "-c", world[2], "-o", f"data.train={world[0]}", "-o",
                 f"data.validation={world[1]}", "-o", "sample.prompts=[红色背景]", "--pipeline", tmp_path / "copies",
                 "--replace", f"1={finished / 'experts'}", "--output", tmp_path / "judged"]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    load_tool("experts").main()
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.startswith("loss")}
    assert rows["loss/expert_01"][0] != rows["loss/expert_01"][1]
    for other in ("loss/expert_00", "loss/expert_02"):
        assert rows[other][0] == rows[other][1]
    assert (tmp_path / "judged" / "after.png").is_file()


def test_not_a_pipeline_folder(tmp_path):
    with pytest.raises(ConfigError, match="unet/config.json.*is .* what you meant"):
        experts.read_job(tmp_path)
