"""Weights out of PyTorch's files without PyTorch; nothing a file asks for is run."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from ppvilg.evaluation.metrics.torch_file import read_torch_weights


@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_wrote(zipped, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, to write the file, is not installed")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": whole,
        "view": whole[1:, ::2].T,  # shares its numbers, neither contiguous nor from their beginning
        "half": torch.tensor([0.5, 2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_weights(tmp_path / "weights.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        expected = value.detach().numpy()
        assert found[name].dtype == expected.dtype and found[name].shape == expected.shape, name
        assert (found[name] == expected).all(), name
    data = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) - 40])
    with pytest.raises(ValueError, match="cut.pth is not readable as weights of PyTorch"):
        read_torch_weights(tmp_path / "cut.pth")


def test_files_that_want_more(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="it asks for posix.mkdir|it asks for nt.mkdir"):
        read_torch_weights(tmp_path / "harmful.pth")
    assert not (tmp_path / "made").exists()
    (tmp_path / "other.pth").write_bytes(pickle.dumps({"a": np.float64(1).item()}))
    with pytest.raises(ValueError, match="no magic number"):
        read_torch_weights(tmp_path / "other.pth")
