"""Ten experts where two fit: the same pictures, each expert read once, and nothing read that is not needed."""

import copy
import gc
import shutil
import threading

import numpy as np
import paddle
import pytest
from ppdiffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from ppvilg.inference.residency import DygraphExperts, ResidentExperts, load_resident_unet, resident_exported_unet
from ppvilg.models import MoDEUNet2DConditionModel
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler
from tests.bundles import BACKENDS

TINY = dict(
    sample_size=8,
    in_channels=32,
    out_channels=32,
    block_out_channels=(32,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=192,
    norm_num_groups=8,
    attention_head_dim=4,
)
WEIGHTS = "diffusion_paddle_model.safetensors"
DOWN = list(range(9, -1, -1))


@pytest.fixture(scope="module")
def resident():
    """The zoo's pipeline around ten tiny experts that differ, all in memory."""
    paddle.seed(0)
    base = UNet2DConditionModel(**TINY)
    base.eval()
    unet = MoDEUNet2DConditionModel.from_base(base, 10)
    for expert in unet.experts:
        for parameter in expert.parameters():
            parameter.set_value(parameter + 0.02 * paddle.randn(parameter.shape))
    return quiet(ErnieViLG2Pipeline.from_pretrained("emoji64", unet=unet))


@pytest.fixture(scope="module")
def folder(resident, tmp_path_factory):
    path = tmp_path_factory.mktemp("ten") / "pipeline"
    resident.save_pretrained(path)
    return path


@pytest.fixture
def streamed(folder):
    return quiet(ErnieViLG2Pipeline.from_pretrained(folder, max_resident_experts=2))


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the experts that a test may damage."""
    return shutil.copytree(folder / "unet", tmp_path / "unet")


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt="三只企鹅", **arguments):
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "generator": 5, "output_type": "np"}
    return pipeline(prompt, **{**settings, **arguments}).images


def unets_in_memory():
    gc.collect()
    return sum(isinstance(each, UNet2DConditionModel) for each in gc.get_objects())


def allocated(which):
    return getattr(paddle.base.core, f"host_memory_stat_{which}_value")("Allocated", 0)


# ---- the pictures, and what was read for them ----


def test_the_same_picture_with_two_of_ten_in_memory(resident, folder):
    before = unets_in_memory()
    streamed = quiet(ErnieViLG2Pipeline.from_pretrained(folder, max_resident_experts=2))
    assert unets_in_memory() - before == 2
    expected = draw(resident)
    for _ in range(2):
        np.testing.assert_array_equal(draw(streamed), expected)
        record = streamed.unet.experts.record
        assert record.visits == record.loads == DOWN
        assert record.hits + record.stalls == 10
        weights = sum(parameter.size * 4 for parameter in resident.unet.experts[0].parameters())
        assert record.peak_experts == 2 and record.peak_bytes == 2 * weights
        assert unets_in_memory() - before == 2
        assert streamed.unet.loaded_experts == [0, 1]


def test_reading_needs_no_memory_beyond_the_standing_experts(folder, resident):
    experts = load_resident_unet(folder / "unet", 2).experts
    one = sum(parameter.size * 4 for parameter in resident.unet.experts[0].parameters())
    before = allocated("current")
    paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
    with experts.expecting(DOWN) as record:
        for k in DOWN:
            assert experts[k].state_dict()["conv_in.weight"].shape == [32, 32, 3, 3]
    assert record.loads == DOWN
    assert allocated("peak") - before < 0.2 * one  # so 2.2 experts are never exceeded
    assert allocated("current") - before < 0.01 * one


def test_experts_that_an_image_does_not_need_are_not_read(resident, streamed):
    image = draw(resident, "一只猫", num_inference_steps=2)[0]
    settings = {"image": image[None], "strength": 0.3}
    np.testing.assert_array_equal(draw(streamed, **settings), draw(resident, **settings))
    assert streamed.unet.experts.record.loads == [2, 1, 0]
    np.testing.assert_array_equal(draw(streamed, num_inference_steps=3), draw(resident, num_inference_steps=3))
    assert streamed.unet.experts.record.loads == [9, 6, 3]


@pytest.mark.parametrize("name", ["ddpm", "pndm"])
def test_schedulers_with_noise_and_memory_of_their_own(resident, streamed, name):
    """Reading must not touch Paddle's random state; PNDM visits timesteps twice."""
    scheduler = build_scheduler(name, resident.scheduler.config)
    expected = [draw(with_scheduler(resident, scheduler), prompt, generator=5 + i) for i, prompt in enumerate("猫狗")]
    np.testing.assert_array_equal(draw(with_scheduler(streamed, scheduler), "猫"), expected[0])
    queued = with_scheduler(streamed, scheduler).generate_queue(
        ["猫", "狗"], batch_size=1, num_inference_steps=10, guidance_scale=3.0, generator=5, output_type="np"
    )
    np.testing.assert_array_equal(queued.images, np.concatenate(expected))
    assert streamed.unet.experts.record.loads == DOWN


def with_scheduler(pipeline, scheduler):
    """A pipeline over the same components; ours are shared by the whole file."""
    other = copy.copy(pipeline)
    other.scheduler = type(scheduler).from_config(scheduler.config)
    return other


def test_a_trajectory_that_ends_early_leaves_the_experts_usable(resident, streamed):
    def stop(pipeline, step, timestep, tensors):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(streamed, callback_on_step_end=stop)
    assert streamed.unet.experts.record.visits == [9, 8, 7]
    assert len(streamed.unet.loaded_experts) == 2
    np.testing.assert_array_equal(draw(streamed), draw(resident))


def test_calls_without_a_plan_and_batches_of_several_experts(resident, streamed):
    paddle.seed(3)
    sample, text = paddle.randn([4, 32, 8, 8]), paddle.randn([4, 6, 192])
    with paddle.no_grad():
        for timestep in (950, paddle.to_tensor([950, 20, 510, 960])):
            expected = resident.unet(sample, timestep, text).sample
            assert (streamed.unet(sample, timestep, text).sample == expected).all()


def test_half_precision_files(resident, folder, copied):
    resident.unet.save_pretrained(copied, dtype="float16")
    unet, expected = load_resident_unet(copied, 2), MoDEUNet2DConditionModel.from_pretrained(copied)
    assert unet.dtype == paddle.float32
    for name, value in unet.experts[4].state_dict().items():
        assert (value == expected.experts[4].state_dict()[name]).all()


def test_weights_of_another_dtype_are_refused_before_anything_is_read(copied):
    file = copied / "expert_03" / WEIGHTS
    tensors = load_file(file)
    tensors["conv_in.bias"] = tensors["conv_in.bias"].astype(np.float64)
    save_file(tensors, file, {"format": "pd"})
    with pytest.raises(ValueError, match="conv_in.bias is stored as F64, experts are streamed from F32 and F16"):
        load_resident_unet(copied, 2)


def test_other_compute_dtypes_are_read_too(resident, copied):
    unet = load_resident_unet(copied, 1, "float64")
    assert unet.dtype == paddle.float64
    for name, value in unet.experts[6].state_dict().items():
        assert (value == resident.unet.experts[6].state_dict()[name].astype("float64")).all()


# ---- exported experts ----


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_exported_experts_are_streamed_too(bundle, backend):
    whole, streamed = (quiet(ErnieViLG2Pipeline.from_exported(bundle, backend, count)) for count in (None, 1))
    settings = {"num_inference_steps": 4, "output_type": "np", "generator": 1}
    np.testing.assert_array_equal(streamed("一只猫", **settings).images, whole("一只猫", **settings).images)
    record = streamed.unet.experts.record
    assert record.visits == record.loads == [1, 0] and record.peak_experts == 1
    assert record.peak_bytes == sum(parameter.nbytes for parameter in load_weights(bundle, 0))
    queued = streamed.generate_queue(["一只猫", "三只企鹅"], batch_size=1, **settings)
    np.testing.assert_array_equal(queued.images[:1], whole("一只猫", **settings).images)
    assert streamed.unet.experts.record.loads == [1, 0]


def load_weights(bundle, index):
    """Weights of an exported expert, as its graph takes them."""
    program = paddle.jit.load(str(bundle / f"expert_{index:02d}" / "inference"))
    return [parameter.numpy() for parameter in program.parameters()]


def test_a_changed_file_of_an_exported_expert_is_found_when_it_is_read(bundle, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    experts = resident_exported_unet(copied, 1, "cpu").experts
    assert experts[0] and experts[1]
    file = copied / "expert_00" / "inference.pdiparams"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)  # after it was read and verified once
    with pytest.raises(ValueError, match=r"expert_00.inference.pdiparams has other contents"):
        experts[0]
    with pytest.raises(ValueError, match="max_resident_experts must be a whole number from 1 to 2, got 3"):
        resident_exported_unet(copied, 3, "cpu")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        resident_exported_unet(copied, 1, "cuda")


# ---- queues ----


def test_a_queue_reads_each_expert_once(resident, streamed):
    prompts = [f"{number}{thing}" for number in ("一只", "两只", "三只", "红色的") for thing in "猫狗鸟鱼马牛羊兔"]
    settings = {"num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "latent"}
    calls = [resident(prompts[i : i + 16], generator=7 + i, **settings).images for i in (0, 16)]
    queued = streamed.generate_queue(prompts, batch_size=16, generator=7, **settings).images
    np.testing.assert_array_equal(queued.numpy(), paddle.concat(calls).numpy())
    record = streamed.unet.experts.record
    assert record.visits == record.loads == DOWN and record.peak_experts == 2


def test_a_queue_hands_each_batch_its_own_arguments(resident):
    rng = np.random.default_rng(0)
    pictures = rng.random((6, 64, 64, 3), dtype=np.float32)
    lists = {"generator": [3, 1, 4, 1, 5, 9], "image": pictures, "mask_image": pictures[..., :1]}
    shared = {"num_images_per_prompt": 2, "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
    prompts, styles, negatives = ["猫", "狗", "鸟"], ["水彩", None, "油画"], ["红色", "", "蓝色"]
    before = resident.scheduler
    queued = resident.generate_queue(
        prompts, batch_size=2, style=styles, negative_prompt=negatives, **lists, **shared
    ).images
    assert resident.scheduler is before
    for prompt, picture in ((slice(0, 2), slice(0, 4)), (slice(2, 3), slice(4, 6))):
        own = {name: value[picture] for name, value in lists.items()}
        expected = resident(
            prompts[prompt], style=styles[prompt], negative_prompt=negatives[prompt], **own, **shared
        ).images
        np.testing.assert_array_equal(queued[picture], expected)
    pils = resident.generate_queue(prompts, batch_size=2, num_inference_steps=1, generator=0).images
    assert [picture.size for picture in pils] == [(64, 64)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "猫"}, "prompt must be a list"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"style": ["水彩"]}, "style has 1 entries, the queue needs 2"),
        ({"generator": [1, 2, 3]}, "generator has 3 entries, the queue needs 2"),
        ({"generator": np.random.default_rng(0)}, "one numpy Generator"),
        ({"callback_on_step_end": print}, "callback_on_step_end is not for queues"),
    ],
)
def test_queues_refuse(resident, arguments, message):
    with pytest.raises(ValueError, match=message):
        resident.generate_queue(**{"prompt": ["猫", "狗"], "batch_size": 1, **arguments})
    with pytest.raises(TypeError, match="stepz"):
        resident.generate_queue(["猫"], stepz=3)


# ---- the plan ----


class Shelf:
    """Ten texts in the place of experts; reading expert k waits for gates[k], and fails for those that are broken."""

    num_experts, dtype = 10, paddle.float32

    def __init__(self):
        self.gates, self.broken, self.retired = {}, set(), []

    def load(self, index, retired):
        self.retired.append(retired)
        assert index not in self.gates or self.gates[index].wait(30)
        if index in self.broken:
            raise OSError(f"expert {index} is torn")
        return f"expert {index}"

    def nbytes(self, index):
        return 100 + index


def walk(experts, order):
    with experts.expecting(order) as record:
        assert [experts[k] for k in order] == [f"expert {k}" for k in order]
    return record


def test_the_next_expert_is_read_while_one_computes():
    shelf = Shelf()
    shelf.gates = {8: threading.Event()}
    experts = ResidentExperts(shelf, 2)
    with experts.expecting([9, 9, 8, 8, 7]) as record:
        assert experts[9] == "expert 9"
        assert record.loads == [9, 8] and experts[9] == "expert 9"  # 8 is on its way, 9 can be called as before
        shelf.gates[8].set()
        experts._coming[1].result()  # it came by itself, without a call for it
        hits = record.hits
        assert experts[8] == "expert 8" and record.hits == hits + 1
    assert shelf.retired == [None, None, "expert 9"]
    assert record.peak_experts == 2 and record.peak_bytes == 109 + 108


def test_a_visit_that_has_to_wait_is_a_stall():
    shelf = Shelf()
    shelf.gates = {8: threading.Event()}
    experts = ResidentExperts(shelf, 2)
    with experts.expecting([9, 8]) as record:
        assert experts[9]
        stalls = record.stalls
        threading.Timer(0.1, shelf.gates[8].set).start()
        assert experts[8]
    assert record.stalls == stalls + 1 and record.stall_seconds > 0 and record.load_seconds > 0


@pytest.mark.parametrize("max_resident", [1, 2, 3, 5, 10])
def test_each_expert_is_read_at_most_once_per_trajectory(max_resident):
    shelf = Shelf()
    experts = ResidentExperts(shelf, max_resident)
    first, second = walk(experts, DOWN), walk(experts, DOWN)
    assert first.loads == DOWN and first.peak_experts == max_resident
    # the rest of the memory keeps what the next picture needs late; how much depends on who is faster
    least, most = {1: (10, 10), 2: (10, 10), 3: (8, 9), 5: (6, 7), 10: (0, 0)}[max_resident]
    assert least <= len(second.loads) <= most
    assert len(set(second.loads)) == len(second.loads) and second.peak_experts == max_resident
    assert len(experts.resident) == max_resident


def test_a_plan_that_comes_back_to_an_expert():
    experts = ResidentExperts(Shelf(), 2)
    assert walk(experts, [3, 2, 3, 1, 3]).loads == [3, 2, 1]  # 3 stays, it is needed soonest
    assert walk(experts, [7]).loads == [7]


def test_an_unread_expert_is_reported_by_the_visit_that_needs_it_and_can_be_read_later():
    shelf = Shelf()
    shelf.broken = {7}
    experts = ResidentExperts(shelf, 2)
    with pytest.raises(OSError, match="expert 7 is torn"):
        walk(experts, DOWN)
    assert experts.record.visits == [9, 8, 7]
    with experts.expecting([8, 7]):  # nobody comes to 7
        assert experts[8] == "expert 8"
    shelf.broken = set()
    assert walk(experts, DOWN).visits == DOWN


# ---- errors before heavy work ----


@pytest.mark.parametrize("count", [0, 11, True, 2.0])
def test_max_resident_experts_must_fit(folder, count):
    with pytest.raises(ValueError, match=r"max_resident_experts must be a whole number from 1 to 10, got"):
        ErnieViLG2Pipeline.from_pretrained(folder, max_resident_experts=count)


def change_weights(copied, change, metadata=None):
    path = copied / "expert_06" / WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata=metadata or {"format": "pd"})


def test_experts_that_do_not_fit_are_refused_before_the_first_step(copied):
    (copied / "expert_03").rename(copied.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match="expert_03 is missing"):
        DygraphExperts(copied, 2)
    (copied.parent / "elsewhere").rename(copied / "expert_03")
    change_weights(copied, lambda weights: None, {"format": "pt"})
    with pytest.raises(ValueError, match="expert_06.*format 'pt'"):
        DygraphExperts(copied, 2)
    change_weights(copied, lambda weights: weights.update({"conv_in.bias": weights["conv_in.bias"][:3].copy()}))
    with pytest.raises(ValueError, match=r"expert_06.*conv_in.bias has shape \[3\], the model needs \[32\]"):
        DygraphExperts(copied, 2)
    change_weights(copied, lambda weights: weights.pop("conv_in.bias"))
    with pytest.raises(ValueError, match=r"expert_06.*lacks 1 tensors, the first is 'conv_in.bias'"):
        DygraphExperts(copied, 2)
    (copied / "expert_06" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="streamed from safetensors"):
        DygraphExperts(copied, 2)


def test_streamed_experts_are_not_saved_or_replaced_by_mistake(streamed, folder, tmp_path):
    draw(streamed, num_inference_steps=1)
    with pytest.raises(ValueError, match="are not loaded"):
        streamed.unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="replace the files"):
        streamed.unet.load_expert(folder / "unet", 3)
