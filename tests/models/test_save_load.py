import errno
import json
import shutil

import numpy as np
import paddle
import pytest
from ppdiffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

import ppvilg.models.expert_files as expert_files
from ppvilg.models import MoDEUNet2DConditionModel


class TinyPipeline(DiffusionPipeline):
    """The least a pipeline can be: a denoiser and a scheduler."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


@pytest.fixture(scope="module")
def saved(mode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "unet"
    mode.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the saved model that a test may damage."""
    return shutil.copytree(saved, tmp_path / "unet")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_save_and_load_give_the_same_model(mode, saved, batch, same_weights):
    weights = "diffusion_paddle_model.safetensors"
    expected = [f"expert_{k:02d}/{name}" for k in range(3) for name in ("config.json", weights)]
    assert files(saved) == ["config.json", *expected]
    loaded = MoDEUNet2DConditionModel.from_pretrained(saved)
    assert loaded.boundaries == mode.boundaries and not loaded.training
    assert all(same_weights(a, b) for a, b in zip(loaded.experts, mode.experts, strict=True))
    timesteps = paddle.to_tensor([10, 900, 300, 20, 650, 99])
    assert (loaded(timestep=timesteps, **batch).sample == mode(timestep=timesteps, **batch).sample).all()
    config = json.loads((saved / "config.json").read_text())
    assert (config["num_experts"], config["boundaries"]) == (3, [0, 100, 600, 1000])
    assert config["unet"]["block_out_channels"] == [32, 64]


def test_saved_files_name_no_folder_of_this_machine(saved, tmp_path):
    MoDEUNet2DConditionModel.from_pretrained(saved).save_pretrained(tmp_path / "again")
    texts = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert len(texts) == 4 and not any(str(saved.parent) in text for text in texts)


def test_an_expert_is_a_stock_unet_folder_and_the_other_way_round(mode, saved, copied, stock, batch, same_weights):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    as_stock = UNet2DConditionModel.from_pretrained(str(saved / "expert_01"))
    assert type(as_stock) is UNet2DConditionModel
    assert (as_stock(x, 300, text).sample == mode(x, 300, text).sample).all()
    stock.save_pretrained(str(copied / "expert_01"))
    replaced = MoDEUNet2DConditionModel.from_pretrained(copied)
    assert same_weights(replaced.experts[1], stock)
    assert (replaced(x, 300, text).sample == stock(x, 300, text).sample).all()


def test_half_precision_files_load_as_float32(mode, saved, tmp_path):
    mode.save_pretrained(tmp_path / "unet", dtype="float16")
    name = "expert_00/diffusion_paddle_model.safetensors"
    assert (tmp_path / "unet" / name).stat().st_size < 0.55 * (saved / name).stat().st_size
    loaded = MoDEUNet2DConditionModel.from_pretrained(tmp_path / "unet")
    for original, parameter in zip(mode.parameters(), loaded.parameters(), strict=True):
        assert parameter.dtype == paddle.float32
        assert (parameter.numpy() == original.numpy().astype(np.float16).astype(np.float32)).all()
    with pytest.raises(ValueError, match="int8"):
        mode.save_pretrained(tmp_path / "other", dtype="int8")


def test_experts_load_one_by_one(mode, saved, batch):
    x, text = batch["sample"], batch["encoder_hidden_states"]
    model = MoDEUNet2DConditionModel.from_pretrained(saved, experts=[1])
    assert model.loaded_experts == [1]
    assert len(model.parameters()) == len(mode.experts[1].parameters())
    assert (model(x, 300, text).sample == mode(x, 300, text).sample).all()
    with pytest.raises(RuntimeError, match="expert 2 is not loaded"):
        model(x, 900, text)
    with pytest.raises(ValueError, match=r"experts \[0, 2\] are not loaded"):
        model.save_pretrained(saved.parent / "part")
    model.load_expert(saved, 2)
    assert model.loaded_experts == [1, 2]
    assert (model(x, 900, text).sample == mode(x, 900, text).sample).all()


def test_loading_into_a_present_expert_keeps_its_parameters(saved, stock, same_weights):
    model = MoDEUNet2DConditionModel.from_base(stock, 3)
    before = [id(parameter) for parameter in model.parameters()]
    model.load_expert(saved, 1)
    assert [id(parameter) for parameter in model.parameters()] == before
    assert same_weights(model.experts[0], stock) and not same_weights(model.experts[1], stock)


def test_one_expert_can_be_saved_alone(mode, copied, stock, same_weights):
    other = MoDEUNet2DConditionModel.from_base(stock, 3, boundaries=mode.boundaries)
    other.save_expert(copied, 2)
    loaded = MoDEUNet2DConditionModel.from_pretrained(copied)
    assert same_weights(loaded.experts[2], stock) and same_weights(loaded.experts[1], mode.experts[1])


def test_a_missing_expert_is_named_with_those_that_are_there(copied):
    (copied / "expert_01").rename(copied.parent / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        MoDEUNet2DConditionModel.from_pretrained(copied)
    assert str(copied / "expert_01") in str(error.value)
    assert "holds expert_00, expert_02" in str(error.value)
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        MoDEUNet2DConditionModel.from_pretrained(copied, experts=[3])


def test_gaps_in_a_saved_config_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    config["boundaries"] = [0, 100, 600, 990]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gap: timesteps 990 to 999"):
        MoDEUNet2DConditionModel.from_pretrained(copied)


def test_an_expert_of_another_shape_is_refused(copied, tiny_config):
    other = UNet2DConditionModel(**{**tiny_config, "block_out_channels": (16, 64)})
    other.save_pretrained(str(copied / "expert_01"))
    with pytest.raises(ValueError, match=r"expert_01 .*block_out_channels: \[16, 64\] instead of \[32, 64\]"):
        MoDEUNet2DConditionModel.from_pretrained(copied)


def test_weights_that_lack_a_tensor_are_refused(copied):
    path = copied / "expert_00" / "diffusion_paddle_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, metadata={"format": "pd"})
    with pytest.raises(ValueError, match="1 missing keys, the first is 'conv_in.weight'"):
        MoDEUNet2DConditionModel.from_pretrained(copied)


def test_folders_that_hold_no_such_model_are_refused(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        MoDEUNet2DConditionModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_stock"):
        MoDEUNet2DConditionModel.from_pretrained(saved / "expert_00")


def test_a_full_disk_leaves_the_old_model_whole(copied, mode, stock, monkeypatch, same_weights):
    other = MoDEUNet2DConditionModel.from_base(stock, 3)
    before, written = files(copied), []

    def save_until_full(weights, path, metadata):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save_file(weights, path, metadata=metadata)

    monkeypatch.setattr(expert_files, "save_file", save_until_full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(copied)
    assert len(written) == 2 and files(copied) == before
    loaded = MoDEUNet2DConditionModel.from_pretrained(copied)
    assert loaded.boundaries == mode.boundaries
    assert all(same_weights(a, b) for a, b in zip(loaded.experts, mode.experts, strict=True))


def test_saving_over_a_model_with_more_experts_leaves_none_behind(copied, stock):
    (copied / "notes.txt").write_text("mine")
    MoDEUNet2DConditionModel.from_base(stock, 2).save_pretrained(copied)
    assert sorted(path.name for path in copied.iterdir()) == ["config.json", "expert_00", "expert_01", "notes.txt"]
    assert MoDEUNet2DConditionModel.from_pretrained(copied).num_experts == 2


def test_a_pipeline_saves_and_loads_it_as_a_component(mode, tmp_path, same_weights):
    TinyPipeline(mode, DDIMScheduler()).save_pretrained(str(tmp_path / "pipeline"))
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["unet"] == ["ppvilg.models.unet", "MoDEUNet2DConditionModel"]
    loaded = TinyPipeline.from_pretrained(str(tmp_path / "pipeline"))
    assert type(loaded.unet) is MoDEUNet2DConditionModel
    assert all(same_weights(a, b) for a, b in zip(loaded.unet.experts, mode.experts, strict=True))


def test_a_stock_folder_becomes_the_base(stock, tmp_path, same_weights):
    stock.save_pretrained(str(tmp_path / "paddle"))
    stock.save_pretrained(str(tmp_path / "torch"), to_diffusers=True)
    for folder, from_diffusers in (("paddle", False), ("torch", True)):
        model = MoDEUNet2DConditionModel.from_stock(tmp_path / folder, from_diffusers=from_diffusers, num_experts=2)
        assert all(same_weights(expert, stock) for expert in model.experts)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MoDEUNet2DConditionModel.from_stock(tmp_path / "nowhere")
