"""Adapters: files of every form, per expert, in and out bit for bit, streamed, and files that are refused."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.models.lora import Adapter, AdapterSettings, LowRank, adaptable_layers, torch_shape
from ppvilg.models.lora_files import METADATA, read_adapter, write_adapter
from ppvilg.pipelines import ErnieViLG2Pipeline
from tests.bundles import bundle, components, tiny  # noqa: F401

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_v", f"{BLOCK}.attn1.to_out.0"]
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
CALL = {"prompt": "三只企鹅", "generator": 3, "output_type": "np"}


@pytest.fixture
def pipeline(tiny):  # noqa: F811
    """A copy that a test may change."""
    return copy.deepcopy(tiny)


def changes_of(pipeline, layers=LAYERS, rank=2, alpha=1.0, seed=0) -> dict[str, LowRank]:
    random, found = np.random.default_rng(seed), {}
    for path in layers:
        shape = torch_shape(adaptable_layers(pipeline.unet.experts[0])[path])
        down = random.standard_normal((rank, *shape[1:])).astype(np.float32)
        up = random.standard_normal((shape[0], rank, *[1] * (len(shape) - 2))).astype(np.float32)
        found[path] = LowRank(down, up, alpha)
    return found


def settings_of(pipeline, **others) -> AdapterSettings:
    return AdapterSettings(pipeline.unet.num_experts, list(pipeline.unet.boundaries), **others)


def weights_of(pipeline) -> list[np.ndarray]:
    networks = [*pipeline.unet.experts, pipeline.text_encoder]
    return [value.numpy() for network in networks for value in network.state_dict().values()]


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def draw(pipeline) -> np.ndarray:
    return pipeline(**CALL).images


def save_form(form: str, changes: dict[str, LowRank], folder):
    """The same changes as another program writes them."""
    tensors, file, metadata = {}, folder / f"{form}.safetensors", {"format": "pt"}
    for path, change in changes.items():
        if form == "kohya":
            name = f"lora_unet_{path.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up}
            tensors[f"{name}.alpha"] = np.array([change.alpha], "f4")
        elif form == "processors":
            name = re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1_lora", f"unet.{path}")
            tensors |= {f"{name}.down.weight": change.down, f"{name}.up.weight": change.up}
        elif form in ("diffusers", "ppdiffusers"):
            name, turned = f"unet.{path}.lora", form == "ppdiffusers"
            tensors |= {
                f"{name}.down.weight": np.ascontiguousarray(change.down.T if turned else change.down),
                f"{name}.up.weight": np.ascontiguousarray(change.up.T if turned else change.up),
            }
            tensors[f"unet.{path}.alpha"] = np.array([change.alpha], "f4")
            metadata["format"] = "pd" if turned else "pt"
        else:
            prefix = "base_model.model.unet." if form == "peft" else "unet."
            tensors |= {f"{prefix}{path}.lora_A.weight": change.down, f"{prefix}{path}.lora_B.weight": change.up}
            metadata["lora_adapter_metadata"] = json.dumps({"unet.lora_alpha": change.alpha, "unet.r": change.rank})
    save_file(tensors, str(file), metadata=metadata)
    return file


@pytest.mark.parametrize("form", ["kohya", "diffusers", "ppdiffusers", "processors", "peft", "diffusers_peft"])
def test_files_of_other_programs_equal_merged_weights_on_every_expert(pipeline, tmp_path, form):
    layers = LAYERS if form in ("processors", "ppdiffusers") else [*LAYERS, CONVOLUTION]
    changes = changes_of(pipeline, layers, alpha=2.0 if form == "processors" else 1.0)  # processors: no alpha, the rank
    before = [dict(expert.state_dict()) for expert in copy.deepcopy(pipeline.unet).experts]
    pipeline.load_lora_weights(save_form(form, changes, tmp_path), scale=0.5)
    for expert, old in zip(pipeline.unet.experts, before):
        for name, value in expert.state_dict().items():
            path = name.removesuffix(".weight")
            expected = old[name].numpy()
            if path in changes and name.endswith(".weight"):
                down, up = changes[path].down, changes[path].up
                delta = np.tensordot(up.reshape(len(up), -1), down, axes=1) * changes[path].alpha / 2 * 0.5
                expected = expected + (delta.T if delta.ndim == 2 else delta)
            np.testing.assert_allclose(value.numpy(), expected, atol=1e-5, err_msg=name)


def test_half_precision_of_both_kinds_is_read(pipeline, tmp_path):
    random, shape = np.random.default_rng(0), torch_shape(adaptable_layers(pipeline.unet.experts[0])[LAYERS[0]])
    pair = {"lora_A": random.standard_normal((2, shape[1])), "lora_B": random.standard_normal((shape[0], 2))}
    narrowed = {
        "F16": lambda value: value.astype(np.float16),
        "BF16": lambda value: (value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
    }
    found = {}
    for dtype, narrow in narrowed.items():
        header, content = {}, b""
        for part, value in pair.items():
            start, content = len(content), content + narrow(value).tobytes()
            entry = {"dtype": dtype, "shape": value.shape, "data_offsets": [start, len(content)]}
            header[f"unet.{LAYERS[0]}.{part}.weight"] = entry
        told = json.dumps(header).encode()
        file = tmp_path / f"{dtype}.safetensors"
        file.write_bytes(len(told).to_bytes(8, "little") + told + content)
        adapter = read_adapter(file, pipeline.unet.experts[0], pipeline.text_encoder)
        found[dtype] = adapter.shared[LAYERS[0]].delta()
    expected = pair["lora_B"] @ pair["lora_A"]
    assert np.abs(found["F16"] - expected).max() < 0.01 and np.abs(found["BF16"] - expected).max() < 0.1


def test_a_file_of_kohyas_scripts_does_what_ppdiffusers_makes_of_it(pipeline, tmp_path):
    from ppdiffusers.loaders import LoraLoaderMixin

    file = save_form("kohya", changes_of(pipeline), tmp_path)
    stock = copy.deepcopy(pipeline.unet.experts[0])
    state, alphas, from_diffusers = LoraLoaderMixin.lora_state_dict(
        str(tmp_path), weight_name=file.name, from_diffusers=True
    )
    LoraLoaderMixin.load_lora_into_unet(state, alphas, stock, from_diffusers=from_diffusers)
    pipeline.load_lora_weights(file)
    sample, states = paddle.randn([2, 4, 8, 8]), paddle.randn([2, 5, 16])
    with paddle.no_grad():
        expected = stock(sample, 3, states).sample
        found = pipeline.unet.experts[0](sample, 3, states).sample
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_new_and_a_zero_scaled_adapter_change_nothing_and_unloading_restores_every_bit(pipeline, tmp_path):
    before, picture = weights_of(pipeline), draw(pipeline)
    fresh = {path: LowRank(each.down, 0 * each.up, 1.0) for path, each in changes_of(pipeline).items()}
    words = {"encoder.layers.0.self_attn.q_proj": LowRank(np.ones((1, 16), "f4"), np.ones((16, 1), "f4"))}
    write_adapter(Adapter(shared=fresh, settings=settings_of(pipeline)), tmp_path / "fresh.safetensors")
    trained = Adapter(changes_of(pipeline), {1: changes_of(pipeline, seed=1)}, words, settings_of(pipeline))
    write_adapter(trained, tmp_path / "trained.safetensors")
    pipeline.load_lora_weights(tmp_path / "fresh.safetensors")
    assert np.array_equal(draw(pipeline), picture)
    pipeline.load_lora_weights(tmp_path / "trained.safetensors", "trained", 0.0)
    assert np.array_equal(draw(pipeline), picture)
    pipeline.set_adapters(["fresh", "trained"], [1.0, 0.7])
    assert pipeline.get_active_adapters() == ["fresh", "trained"]
    assert pipeline.get_list_adapters() == {"unet": ["fresh", "trained"], "text_encoder": ["trained"]}
    changed = draw(pipeline)
    assert np.abs(changed - picture).max() > 1e-3
    pipeline.disable_lora()
    assert same(weights_of(pipeline), before)
    pipeline.set_adapters(["trained"], 0.7)
    assert np.array_equal(draw(pipeline), changed)  # the fresh one adds nothing
    pipeline.unload_lora_weights()
    assert same(weights_of(pipeline), before) and not pipeline.get_active_adapters()


def test_pipelines_that_share_networks_share_adapters_and_deep_copies_have_their_own(pipeline, tmp_path):
    copied, before = copy.copy(pipeline), weights_of(pipeline)
    file = save_form("kohya", changes_of(pipeline), tmp_path)
    copied.load_lora_weights(file, "one")
    assert pipeline.get_active_adapters() == ["one"]
    with pytest.raises(ValueError, match="one"):
        pipeline.load_lora_weights(file, "one")
    other = copy.deepcopy(pipeline)
    pipeline.unload_lora_weights()
    assert same(weights_of(pipeline), before) and copied.get_active_adapters() == []
    assert other.get_active_adapters() == ["one"] and not same(weights_of(other), before)
    other.unload_lora_weights()
    assert same(weights_of(other), before)


def test_an_adapter_of_one_expert_leaves_the_others_and_a_scale_per_expert_does_the_same(pipeline, tmp_path):
    changes, settings = changes_of(pipeline), settings_of(pipeline)
    write_adapter(Adapter(experts={1: changes}, settings=settings), tmp_path / "one.safetensors")
    write_adapter(Adapter(shared=changes, settings=settings), tmp_path / "all.safetensors")
    first, second = (weights_of(copy.deepcopy(pipeline)) for _ in range(2))
    assert same(first, second)
    pipeline.load_lora_weights(tmp_path / "one.safetensors")
    one, count = weights_of(pipeline), len(pipeline.unet.experts[0].state_dict())
    assert same(one[:count], first[:count]) and not same(one[count : 2 * count], first[count : 2 * count])
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(tmp_path / "all.safetensors", scale=[0, 1])
    assert same(weights_of(pipeline), one)


def test_other_boundaries_are_refused_or_remapped_by_overlap(pipeline, tmp_path):
    settings = AdapterSettings(3, [0, 40, 80, 100])
    experts = {k: changes_of(pipeline, seed=k) for k in range(3)}
    write_adapter(Adapter(experts=experts, settings=settings), tmp_path / "three.safetensors")
    with pytest.raises(ValueError, match=r"boundaries \[0, 40, 80, 100\], this model's are \[0, 50, 100\].*remap=True"):
        pipeline.load_lora_weights(tmp_path / "three.safetensors")
    pipeline.load_lora_weights(tmp_path / "three.safetensors", remap=True)
    remapped = weights_of(pipeline)
    pipeline.unload_lora_weights()
    ours = Adapter(experts={0: experts[0], 1: experts[1]}, settings=settings_of(pipeline))
    write_adapter(ours, tmp_path / "two.safetensors")
    pipeline.load_lora_weights(tmp_path / "two.safetensors")
    assert same(weights_of(pipeline), remapped)


def test_streamed_experts_draw_the_same_and_the_base_is_asked_for(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    plain, streamed = (
        ErnieViLG2Pipeline.from_pretrained(tmp_path / "model", max_resident_experts=count) for count in (None, 1)
    )
    for each in (plain, streamed):
        each.set_progress_bar_config(disable=True)
    picture = draw(streamed)
    base = plain.__dict__["_base_sha256"]()
    adapter = Adapter(
        changes_of(pipeline), {0: changes_of(pipeline, seed=2)}, settings=settings_of(pipeline, base_sha256=base)
    )
    write_adapter(adapter, tmp_path / "a.safetensors")
    for each in (plain, streamed):
        each.load_lora_weights(tmp_path / "a.safetensors", scale=[0.5, 1])
    assert np.array_equal(draw(streamed), draw(plain)) and not np.array_equal(draw(plain), picture)
    streamed.unload_lora_weights()
    assert np.array_equal(draw(streamed), picture)
    with pytest.raises(ValueError, match="adapters are on; fuse_lora"):
        plain.save_pretrained(tmp_path / "no")
    changed = draw(plain)
    plain.fuse_lora()
    plain.save_pretrained(tmp_path / "fused")
    other = ErnieViLG2Pipeline.from_pretrained(tmp_path / "fused")
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(other), changed)
    with pytest.raises(ValueError, match="trained on another model"):
        other.load_lora_weights(tmp_path / "a.safetensors")
    other.load_lora_weights(tmp_path / "a.safetensors", any_base=True)
    plain.unfuse_lora()
    plain.unload_lora_weights()
    assert np.array_equal(draw(plain), picture)


def test_what_was_written_is_read_again(pipeline, tmp_path):
    experts, settings = {1: changes_of(pipeline, alpha=None)}, settings_of(pipeline, mark=False)
    adapter = Adapter(changes_of(pipeline), experts, settings=settings)
    write_adapter(adapter, tmp_path / "a.safetensors")
    found = read_adapter(tmp_path / "a.safetensors", pipeline.unet.experts[0], pipeline.text_encoder)
    assert found.settings == adapter.settings and found.experts.keys() == {1}
    for path, change in adapter.shared.items():
        assert np.array_equal(found.shared[path].delta(), change.delta())
        assert found.experts[1][path].alpha is None and found.shared[path].alpha == 1.0
    with pytest.raises(FileExistsError):
        write_adapter(adapter, tmp_path / "a.safetensors")


Q = f"unet.{LAYERS[0]}"
PAIR = {f"{Q}.lora_A.weight": np.ones((1, 8), "f4"), f"{Q}.lora_B.weight": np.ones((8, 1), "f4")}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no tensors"),
        ({f"{Q}.lora_A.weight": PAIR[f"{Q}.lora_A.weight"]}, "lacks its up matrix"),
        ({**PAIR, f"{Q}.lora_A.weight": np.ones((0, 8), "f4"), f"{Q}.lora_B.weight": np.ones((8, 0), "f4")}, "rank 0"),
        ({**PAIR, f"{Q}.lora_A.weight": np.full((1, 8), np.nan, "f4")}, "not finite"),
        ({**PAIR, f"{Q}.lora_A.weight": np.ones((1, 7), "f4")}, r"matrices of \(8, 1\) and \(1, 7\), its layer is"),
        ({**PAIR, "unet.nowhere.to_q.lora_A.weight": np.ones((1, 8), "f4")}, "changes nowhere.to_q, a layer that"),
        ({**PAIR, "something": np.ones(3, "f4")}, "'something', which no known form of LoRA has"),
        ({**PAIR, f"{Q}.dora_scale": np.ones(8, "f4")}, "is DoRA"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones((), "f4")}, "CLIP text encoder"),
    ],
)
def test_files_that_are_refused_by_one_sentence(pipeline, tmp_path, tensors, said):
    save_file(tensors, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    before = weights_of(pipeline)
    with pytest.raises(ValueError, match=said):
        pipeline.load_lora_weights(tmp_path / "a.safetensors")
    assert same(weights_of(pipeline), before) and not pipeline.get_list_adapters()


def test_names_places_and_kinds_that_are_refused(pipeline, bundle, tmp_path):  # noqa: F811
    file = save_form("kohya", changes_of(pipeline), tmp_path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        pipeline.load_lora_weights(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        pipeline.load_lora_weights(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle"):
        pipeline.load_lora_weights(tmp_path / "weights.bin")
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="torn.safetensors"):
        pipeline.load_lora_weights(tmp_path / "torn.safetensors")
    save_file(PAIR, str(tmp_path / "own.safetensors"), metadata={METADATA: "{"})
    with pytest.raises(ValueError, match="its entry 'ppvilg_adapter' cannot be read"):
        pipeline.load_lora_weights(tmp_path / "own.safetensors")
    pipeline.load_lora_weights(file)
    with pytest.raises(ValueError, match="'kohya' is loaded already"):
        pipeline.load_lora_weights(file)
    with pytest.raises(ValueError, match="no adapter 'other'; loaded: kohya"):
        pipeline.set_adapters("other")
    with pytest.raises(ValueError, match="a number or 2 of them"):
        pipeline.set_adapters("kohya", [1, 2, 3])
    exported = ErnieViLG2Pipeline.from_exported(bundle, "cpu")
    with pytest.raises(ValueError, match="as they were exported"):
        exported.load_lora_weights(file)


def test_an_expert_that_is_not_loaded_stays_away(pipeline, tmp_path):
    file = save_form("kohya", changes_of(pipeline), tmp_path)
    pipeline.unet.save_pretrained(tmp_path / "unet")
    pipeline.unet = MoDEUNet2DConditionModel.from_pretrained(tmp_path / "unet", experts=[1])
    pipeline.load_lora_weights(file)
    assert pipeline.unet.loaded_experts == [1]


OWN = f"unet.experts.1.{LAYERS[0]}"
OWN_PAIR = {f"{OWN}.lora_A.weight": np.ones((1, 8), "f4"), f"{OWN}.lora_B.weight": np.ones((8, 1), "f4")}


@pytest.mark.parametrize(
    ("tensors", "told", "said"),
    [
        ({**OWN_PAIR, "unet.experts.1.x": np.ones(1, "f4")}, {}, "has a tensor .unet.experts.1.x., which no"),
        ({f"{OWN}.lora_A.weight": np.ones((1, 8), "f4")}, {}, "experts.1.* lacks its up matrix"),
        (OWN_PAIR, {"alphas": {f"{OWN.replace('to_q', 'to_k')}": 1.0}}, "lacks the tensors of unet.experts.1.*to_k"),
        ({name.replace("to_q", "to_z"): value for name, value in OWN_PAIR.items()}, {}, "changes .*to_z, a layer that"),
        ({name.replace("experts.1", "experts.2"): each for name, each in OWN_PAIR.items()}, {}, "made for 2 experts"),
        ({name: value * np.nan for name, value in OWN_PAIR.items()}, {}, "not finite"),
        ({f"{OWN}.lora_{k}.weight": np.ones(s, "f4") for k, s in (("A", (0, 8)), ("B", (8, 0)))}, {}, "has rank 0"),
        (OWN_PAIR, {"settings": {"num_experts": 2}}, "its entry 'ppvilg_adapter' cannot be read"),
        (OWN_PAIR, {"settings": {"num_experts": 2, "boundaries": [0, 50, 100], "base_sha256": "0"}}, "another model"),
    ],
)
def test_own_files_that_are_refused_by_one_sentence(pipeline, tmp_path, tensors, told, said):
    pipeline.__dict__["_base_sha256"] = lambda: "1"
    entry = {"settings": {"num_experts": 2, "boundaries": [0, 50, 100]}, "alphas": {}, **told}
    save_file(tensors, str(tmp_path / "a.safetensors"), metadata={METADATA: json.dumps(entry)})
    before = weights_of(pipeline)
    with pytest.raises(ValueError, match=said) as refused:
        pipeline.load_lora_weights(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(refused.value) and "\n" not in str(refused.value)
    assert same(weights_of(pipeline), before) and not pipeline.get_list_adapters()


def test_one_of_four_experts(components, tmp_path):  # noqa: F811
    """Predictions in the ranges of the others stay to the bit; one scale per expert says the same of a shared one."""
    four = ErnieViLG2Pipeline(**{**components, "unet": copy.deepcopy(components["unet"])}, max_length=16)
    changes, settings = changes_of(four), settings_of(four)
    write_adapter(Adapter(experts={3: changes}, settings=settings), tmp_path / "last.safetensors")
    write_adapter(Adapter(shared=changes, settings=settings), tmp_path / "all.safetensors")
    sample, states = paddle.randn([2, 4, 8, 8]), paddle.randn([2, 5, 16])

    @paddle.no_grad()
    def predictions() -> list[np.ndarray]:
        return [four.unet(sample, timestep, states).sample.numpy() for timestep in (10, 30, 60, 90)]

    before = predictions()
    four.load_lora_weights(tmp_path / "last.safetensors")
    last = predictions()
    assert same(last[:3], before[:3]) and not np.array_equal(last[3], before[3])
    four.load_lora_weights(tmp_path / "all.safetensors", scale=0)
    four.set_adapters("all", [0, 0, 0, 1])
    assert same(predictions(), last)
    four.unload_lora_weights()
    assert same(predictions(), before)


def test_adapters_stay_while_a_picture_is_drawn(pipeline, tmp_path):
    pipeline.load_lora_weights(save_form("kohya", changes_of(pipeline), tmp_path), "a")
    picture, refused = draw(pipeline), []

    def meddle(pipe, step, timestep, tensors):
        for change in (pipe.disable_lora, pipe.unload_lora_weights, pipe.fuse_lora):
            with pytest.raises(ValueError, match="a picture is being drawn"):
                change()
            refused.append(change)
        return tensors

    assert np.array_equal(pipeline(**CALL, callback_on_step_end=meddle).images, picture) and len(refused) == 9
