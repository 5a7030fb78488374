"""The Inception of FID: the same numbers as pytorch-fid's for the same random weights, converted as messages say."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from ppvilg.evaluation.metrics.inception import STATISTICS, InceptionNetwork, load_inception

CLASSES = 1008


def torch_name(name: str) -> str:
    for theirs, ours in STATISTICS.items():
        if name.endswith(ours):
            return name.removesuffix(ours) + theirs
    return name


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Random weights and statistics under PyTorch's names, with the classifier that FID does not use."""
    rng = np.random.default_rng(0)
    state = {}
    for name, value in InceptionNetwork().state_dict().items():
        shape = list(value.shape)
        if name.endswith("conv.weight"):
            array = rng.normal(scale=np.sqrt(2 / np.prod(shape[1:])), size=shape)
        elif name.endswith(("bn.weight", "bn._variance")):
            array = rng.uniform(0.8, 1.2, size=shape)
        else:
            array = rng.normal(scale=0.1, size=shape)
        state[torch_name(name)] = array.astype(np.float32)
        if name.endswith("bn.bias"):
            state[name.removesuffix("bias") + "num_batches_tracked"] = np.array(3)
    state["fc.weight"] = np.zeros((CLASSES, 2048), np.float32)
    state["fc.bias"] = np.zeros(CLASSES, np.float32)
    return state


def test_equal_to_pytorch_fid(weights, tmp_path, monkeypatch, import_peer):
    import paddle

    torch = import_peer("torch")
    peer = import_peer("pytorch_fid.inception")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: tensors)
    theirs = peer.InceptionV3([3]).eval()
    torch.save(tensors, tmp_path / "inception.pth")
    with pytest.raises(ValueError, match="inception.pth is a pickle, which can run code") as refused:
        load_inception(tmp_path / "inception.pth")
    exec(shlex.split(str(refused.value).partition(" convert it by ")[2])[2], {})
    ours = load_inception(tmp_path / "inception.safetensors")
    pixels = np.random.default_rng(1).random((2, 3, 64, 80), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels))[0].flatten(1).numpy()
    with paddle.no_grad():
        found = ours(paddle.to_tensor(pixels)).numpy()
    assert found.shape == (2, 2048) and np.abs(expected).mean() > 0.01
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # the pictures are told apart


def test_other_weights_are_refused(weights, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="other.safetensors is missing"):
        load_inception(path)
    save_file({name: value for name, value in weights.items() if name != "Conv2d_1a_3x3.conv.weight"}, str(path))
    with pytest.raises(ValueError, match="it lacks Conv2d_1a_3x3.conv.weight"):
        load_inception(path)
    save_file({**weights, "Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 5, 5), np.float32)}, str(path))
    with pytest.raises(ValueError, match="differs in the shape of Conv2d_1a_3x3.conv.weight"):
        load_inception(path)
    save_file({**weights, "extra": np.zeros(1, np.float32)}, str(path))
    with pytest.raises(ValueError, match="does not know extra"):
        load_inception(path)
