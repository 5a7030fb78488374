"""Bundles: what is written is what the model is; whatever is not stops the export or the loading."""

from __future__ import annotations

import json
import shutil

import numpy as np
import paddle
import pytest

from ppvilg.export import ProofError, export_experts, export_model, export_pipeline, graphs
from ppvilg.export import export as export_module
from ppvilg.export import prove as prove_module
from ppvilg.inference import engines, exported_unet, load_exported_expert, machine_name, read_manifest, read_proofs
from ppvilg.inference.components import ExportedExpert
from ppvilg.inference.engines import paddle_inference
from ppvilg.inference.manifest import GRAPH, ONNX, WEIGHTS, stored
from ppvilg.inference.options import BackendOptions
from ppvilg.models import MoDEUNet2DConditionModel, attention
from ppvilg.pipelines import ErnieViLG2Pipeline
from tests.bundles import BACKENDS

PARTS = ["text_encoder", "vae_encoder", "vae_decoder", "expert_00", "expert_01"]


@pytest.fixture
def copied(bundle, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "copied")


@pytest.fixture(scope="module")
def one_expert(tiny):
    """A model of one tiny expert, which exports fastest."""
    return MoDEUNet2DConditionModel.from_base(tiny.unet, 1)


def expert_inputs(count, height, width, length, seed=0):
    random = np.random.default_rng(seed)
    shapes = [(count, 4, height, width), (count, length, 16), (count, length)]
    sample, text, weights = (paddle.to_tensor(random.standard_normal(shape, dtype="float32")) for shape in shapes)
    return {"sample": sample, "encoder_hidden_states": text, "key_token_weights": weights}


# ---- what a bundle holds ----


def test_the_manifest_tells_all(tiny, bundle):
    manifest = read_manifest(bundle)
    assert list(manifest.parts) == PARTS
    assert manifest.routing == {"num_experts": 2, "boundaries": [0, 50, 100], "num_train_timesteps": 100}
    assert manifest.prediction_type == tiny.scheduler.config.prediction_type
    assert manifest.pipeline["key_token_weight"] == 0.5 and manifest.weights == "float32"
    assert manifest.versions["paddlepaddle"] == paddle.__version__
    for name, part in manifest.parts.items():
        assert part.files == {file: stored(bundle / name / file) for file in part.files}
        assert set(part.files) == {GRAPH, WEIGHTS, *([ONNX] if len(BACKENDS) > 2 else [])}
        assert all(port.shape[0] == -1 for port in [*part.inputs, *part.outputs])
    assert manifest.parts["expert_01"].weight_bytes == sum(4 * p.size for p in tiny.unet.experts[1].parameters())
    assert {"tokenizer/vocab.txt", "scheduler/scheduler_config.json"} <= set(manifest.files)


def test_the_proof_was_measured_and_is_within_tolerance(bundle):
    proofs = read_proofs(bundle)[machine_name()]
    assert list(proofs) == BACKENDS
    for proof in proofs.values():
        assert list(proof.parts) == PARTS
        assert all(0 <= part["max_error"] <= 1e-4 for part in proof.parts.values())
        assert proof.trajectory["steps"] == 20 and proof.trajectory["pictures"] == 3
        assert proof.trajectory["max_mean_pixel_error"] <= 1 / 255
        assert proof.step_seconds > 0
    # the others round otherwise than dygraph does: errors of exactly zero would mean that they were not asked
    assert all(proofs[name].parts["expert_00"]["max_error"] > 0 for name in BACKENDS[1:])


def test_files_tell_nothing_of_where_they_were_made(bundle):
    places = [str(bundle.parents[1]).encode(), b"unproven"]  # the tokenizer was made in there, too
    for file in bundle.rglob("*"):
        assert file.is_dir() or not any(place in file.read_bytes() for place in places), file


# ---- the same pipeline ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_way_to_a_picture_is_the_same(tiny, bundle, backend):
    exported = ErnieViLG2Pipeline.from_exported(bundle, backend)
    exported.set_progress_bar_config(disable=True)
    random = np.random.default_rng(0)
    picture, mask = random.random((16, 24, 3), dtype=np.float32), np.zeros((16, 24), np.float32)
    mask[:, :12] = 1
    prompts = ["左边是一只猫，右边是一棵松树", "三只企鹅"]
    calls = [
        dict(style="水彩", guidance_scale=[1.0, 3.0], height=32, width=24, num_images_per_prompt=2),
        dict(image=picture, strength=0.6, negative_prompt="油画"),
        dict(image=picture, mask_image=mask),
    ]
    for call in calls:
        expected, found = (each(prompts, generator=5, output_type="np", **call).images for each in (tiny, exported))
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4, call
        assert expected.std() > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_pictures_in_tiles_and_slices_as_the_stock_autoencoder_does(tiny, bundle, backend):
    exported = ErnieViLG2Pipeline.from_exported(bundle, backend)
    random = np.random.default_rng(0)
    latents = paddle.to_tensor(random.standard_normal((2, 4, 20, 36), dtype="float32"))  # tiles are of 16 x 16
    pictures = paddle.to_tensor(random.random((2, 3, 40, 72), dtype="float32"))
    whole = exported.vae.decode(latents).sample
    results = []
    for pipeline in (tiny, exported):
        pipeline.enable_vae_tiling()
        pipeline.enable_vae_slicing()
        results.append([pipeline.vae.decode(latents).sample, pipeline.vae.encode(pictures).latent_dist.mean])
        pipeline.disable_vae_tiling()
        pipeline.disable_vae_slicing()
    for expected, found in zip(*results):
        assert found.shape == expected.shape and float((found - expected).abs().max()) < 1e-4
    assert float((results[1][0] - whole).abs().max()) > 1e-3  # tiles have statistics of their own
    assert float((exported.vae.decode(latents).sample - whole).abs().max()) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_an_expert_takes_any_batch_size_and_length(tiny, bundle, backend):
    expert = load_exported_expert(bundle, 1, backend)
    for count, height, width, length in ((1, 2, 2, 1), (3, 8, 12, 16), (2, 10, 4, 5)):
        inputs = expert_inputs(count, height, width, length)
        attention = {"key_token_weights": inputs.pop("key_token_weights")}
        for timestep in (7, 7.5, paddle.to_tensor([3.0, 40.0, 90.0][:count])):
            given = timestep if isinstance(timestep, paddle.Tensor) else paddle.to_tensor([float(timestep)])
            with paddle.no_grad():
                expected = tiny.unet.experts[1](
                    timestep=given, cross_attention_kwargs=attention, return_dict=False, **inputs
                )[0]
            found = expert(timestep=timestep, cross_attention_kwargs=attention, **inputs).sample
            assert float((found - expected).abs().max()) < 1e-4 * float(expected.std())


def test_without_key_weights_they_are_one(bundle):
    expert = load_exported_expert(bundle, 0, "cpu")
    inputs = expert_inputs(2, 8, 8, 4)
    ones = {"key_token_weights": paddle.ones_like(inputs.pop("key_token_weights"))}
    first = expert(timestep=5, **inputs).sample
    assert (first == expert(timestep=5, cross_attention_kwargs=ones, **inputs).sample).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_outlive_the_next_call(bundle, backend):
    expert = load_exported_expert(bundle, 0, backend)
    calls = [expert_inputs(2, 8, 8, 4, seed) for seed in range(2)]
    for call in calls:
        call.pop("key_token_weights")
    first = expert(timestep=5, **calls[0]).sample
    kept = first.numpy()
    expert(timestep=5, **calls[1])
    assert (first.numpy() == kept).all()


def test_what_the_graph_has_no_input_for_is_refused(bundle):
    expert = load_exported_expert(bundle, 0, "cpu")
    inputs = expert_inputs(1, 8, 8, 4)
    weights = inputs.pop("key_token_weights")
    with pytest.raises(ValueError, match="alone"):
        expert(timestep=5, attention_mask=weights, **inputs)
    with pytest.raises(ValueError, match="alone"):
        expert(timestep=5, cross_attention_kwargs={"scale": 2.0}, **inputs)
    with pytest.raises(ValueError, match="7x8 are no multiple of 2"):
        expert(timestep=5, **{**inputs, "sample": inputs["sample"][:, :, :7]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_streamed_experts_draw_the_same(bundle, backend):
    both = [ErnieViLG2Pipeline.from_exported(bundle, backend, limit) for limit in (None, 1)]
    pictures = [each("三只企鹅", generator=1, output_type="np").images for each in both]
    assert (pictures[0] == pictures[1]).all()
    assert both[1].unet.experts.record.peak_experts == 1


def test_an_exported_pipeline_is_not_saved_in_part(bundle, tmp_path):
    exported = ErnieViLG2Pipeline.from_exported(bundle, "cpu")
    assert exported.dtype == paddle.float32
    with pytest.raises(ValueError, match="copy the folder of its bundle"):
        exported.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_self_attention_over_many_tokens_is_exported_in_blocks(one_expert, tmp_path, monkeypatch):
    processors = dict(one_expert.experts[0].attn_processors)
    softmaxes = {}
    for limit in (2**22, 1):
        monkeypatch.setattr(attention, "MAP_BYTES", limit)
        export_experts(one_expert, tmp_path / str(limit), ["cpu"])  # proven on several sizes
        graph = (tmp_path / str(limit) / "expert_00" / GRAPH).read_text(encoding="utf-8")
        softmaxes[limit] = graph.count("softmax\"")
    assert softmaxes[1] > softmaxes[2**22]
    assert dict(one_expert.experts[0].attn_processors) == processors  # the model is as it was


# ---- faults ----


def alter(place, old, new):
    """Changes one number of a graph."""
    text = place.read_text(encoding="utf-8")
    assert old in text
    place.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_altered_number_in_a_graph_stops_the_export(tiny, tmp_path, monkeypatch):
    def write_part(plan, folder, weights, formats):
        part = graphs.write_part(plan, folder, weights, formats)
        if plan.name == "expert_01":
            alter(folder / plan.name / GRAPH, "-9.2103", "-9.2203")  # log(10000), of the timestep embedding
            part.files[GRAPH] = stored(folder / plan.name / GRAPH)
        return part

    monkeypatch.setattr(export_module, "write_part", write_part)
    with pytest.raises(ProofError, match="expert_01 on backend 'cpu' is off by .* of its output's standard deviation"):
        export_experts(tiny.unet, tmp_path / "faulty", ["cpu"])
    assert not list(tmp_path.iterdir())


def test_a_graph_that_was_traced_wrong_stops_the_export(one_expert, tmp_path, monkeypatch):
    traced = graphs._Expert._trace

    @paddle.jit.not_to_static
    def otherwise_in_the_graph(self, *inputs):
        return traced(self, *inputs) * (1 if paddle.in_dynamic_mode() else 1.001)

    monkeypatch.setattr(graphs._Expert, "_trace", otherwise_in_the_graph)
    with pytest.raises(ProofError, match="expert_00 on backend 'cpu' is off by 0.00"):
        export_experts(one_expert, tmp_path / "faulty", ["cpu"])


def test_a_fault_that_only_the_trajectory_shows_stops_the_export(one_expert, tmp_path, monkeypatch):
    denoise = prove_module.denoise

    def with_late_noise(unet, *arguments):
        latents = denoise(unet, *arguments)
        assert isinstance(unet.experts[0], ExportedExpert)
        return latents + 0.1 * latents.std()

    monkeypatch.setattr(prove_module, "denoise", with_late_noise)
    with pytest.raises(ProofError, match="20 steps on backend 'cpu' ends 0.1 off .* every part is within"):
        export_experts(one_expert, tmp_path / "faulty", ["cpu"])
    assert not list(tmp_path.iterdir())


def test_the_pass_that_makes_onednn_wrong_is_caught(one_expert, tmp_path, monkeypatch):
    configure = paddle_inference.inference_config

    def with_the_pass(folder, options):
        config = configure(folder, BackendOptions("cpu"))
        config.enable_onednn()
        return config

    monkeypatch.setattr(paddle_inference, "inference_config", with_the_pass)
    with pytest.raises(ProofError, match="expert_00 on backend 'onednn' is off by"):
        export_experts(one_expert, tmp_path / "wrong", ["onednn"])


# ---- bfloat16 ----


@pytest.mark.skipif(not engines.has_bfloat16_instructions(), reason="this processor has no bfloat16 instructions")
def test_bfloat16_is_near_and_its_proof_sees_a_fault(one_expert, tmp_path, monkeypatch):
    backends = ["onednn_bfloat16", *(f"{name}_bfloat16" for name in BACKENDS if name == "openvino")]
    export_experts(one_expert, tmp_path / "good", backends)
    for proof in read_proofs(tmp_path / "good")[machine_name()].values():
        assert 1e-4 < proof.parts["expert_00"]["rms_error"] < 1e-1  # it did round, and not more than that
    traced = graphs._Expert._trace

    @paddle.jit.not_to_static
    def otherwise_in_the_graph(self, *inputs):
        return traced(self, *inputs) * (1 if paddle.in_dynamic_mode() else 1.2)

    monkeypatch.setattr(graphs._Expert, "_trace", otherwise_in_the_graph)
    with pytest.raises(ProofError, match="expert_00 on backend 'onednn_bfloat16' is off by .* .allowed: 0.1"):
        export_experts(one_expert, tmp_path / "faulty", ["onednn_bfloat16"])


def test_bfloat16_is_refused_without_its_instructions(one_expert, tmp_path, monkeypatch):
    for flags, known in (("flags : fpu avx2", False), ("flags : fpu avx512_bf16", True), ("flags : amx_bf16", True)):
        (tmp_path / "cpuinfo").write_text(flags + "\n")
        assert engines.has_bfloat16_instructions(tmp_path / "cpuinfo") is known
    assert not engines.has_bfloat16_instructions(tmp_path / "nothing")
    monkeypatch.setattr(engines, "has_bfloat16_instructions", lambda: False)
    with pytest.raises(ValueError, match="needs a processor with avx512_bf16 or amx_bf16"):
        export_experts(one_expert, tmp_path / "refused", ["onednn_bfloat16"])


@pytest.mark.parametrize("file", [f"expert_01/{WEIGHTS}", f"vae_decoder/{GRAPH}", "tokenizer/vocab.txt"])
def test_a_flipped_bit_is_caught_at_load(copied, file):
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} has other contents than when the bundle was proven"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")


def test_a_torn_and_a_missing_file_are_named(copied):
    weights = copied / "text_encoder" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"text_encoder/{WEIGHTS} has .* bytes instead of"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"text_encoder/{WEIGHTS} is missing"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")


def change(folder, **values):
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_a_bundle_of_a_newer_paddle_is_refused(copied):
    change(copied, program_version=99, versions={"paddlepaddle": "4.2.0"})
    with pytest.raises(ValueError, match="made by Paddle 4.2.0 .graph format 99.*install Paddle 4.2.0 or newer"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")


def test_manifests_of_others_and_damaged_ones(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        ErnieViLG2Pipeline.from_exported(tmp_path)
    change(copied, format_version=1)
    with pytest.raises(ValueError, match="format_version 1, this ppvilg reads 2"):
        ErnieViLG2Pipeline.from_exported(copied)
    change(copied, format_version=2, unheard_of=1)
    with pytest.raises(ValueError, match="unheard_of"):
        ErnieViLG2Pipeline.from_exported(copied)
    change(copied, format="something")
    with pytest.raises(ValueError, match="belongs to something else"):
        ErnieViLG2Pipeline.from_exported(copied)
    (copied / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        ErnieViLG2Pipeline.from_exported(copied)


def test_back_ends_that_are_not_there_or_not_proven(copied, tiny, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'magic', choose one of cpu, onednn, onednn_bfloat16, gpu"):
        ErnieViLG2Pipeline.from_exported(copied, "magic")
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    with pytest.raises(ValueError, match="needs paddlepaddle-gpu"):
        export_pipeline(tiny, tmp_path / "gpu", ["gpu"])
    file = copied / "proofs" / f"{machine_name()}.json"
    content = json.loads(file.read_text("utf-8"))
    del content["backends"]["cpu"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="proven for onednn.*, not for backend 'cpu': run 'ppvilg prove .* cpu'"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")


def test_nothing_is_overwritten(bundle, tiny):
    before = stored(bundle / "manifest.json")
    with pytest.raises(FileExistsError, match="is there already"):
        export_pipeline(tiny, bundle)
    assert stored(bundle / "manifest.json") == before


# ---- experts alone, and smaller files ----


def test_a_stock_unet_folder(one_expert, tmp_path):
    one_expert.save_pretrained(tmp_path / "unet")
    manifest = export_model(tmp_path / "unet" / "expert_00", tmp_path / "bundle", ["onednn"])
    assert list(manifest.parts) == ["expert_00"] and manifest.pipeline is None
    assert read_proofs(tmp_path / "bundle")[machine_name()]["onednn"].trajectory["max_latent_error"] < 1e-2
    inputs = expert_inputs(2, 8, 8, 4)
    stock = MoDEUNet2DConditionModel.from_stock(tmp_path / "unet" / "expert_00")
    with paddle.no_grad():
        expected, found = (unet(timestep=500, **inputs).sample for unet in (stock, exported_unet(tmp_path / "bundle")))
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.std())
    with pytest.raises(ValueError, match="holds experts alone"):
        ErnieViLG2Pipeline.from_exported(tmp_path / "bundle")


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="cannot export a AutoencoderKL"):
        export_model(tmp_path, tmp_path / "bundle")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model of the zoo"):
        export_model("emoji65", tmp_path / "bundle")


@pytest.mark.parametrize(("weights", "share"), [("float16", 0.7), ("int8", 0.55)])
def test_smaller_files_widen_to_what_was_stored(one_expert, tmp_path, weights, share):
    before = {name: value.numpy() for name, value in one_expert.state_dict().items()}
    manifest = export_experts(one_expert, tmp_path / weights, ["cpu", "onednn"], weights=weights)
    part = manifest.parts["expert_00"]
    assert part.files[WEIGHTS].bytes < share * part.weight_bytes
    for proof in read_proofs(tmp_path / weights)[machine_name()].values():
        assert proof.parts["expert_00"]["max_error"] <= 1e-4 < part.rounding_error
    after = {name: value.numpy() for name, value in one_expert.state_dict().items()}
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
