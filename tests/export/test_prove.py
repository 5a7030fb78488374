"""A bundle is proven where it stands: by ONNX graphs too, from a read-only folder, and never with another's proof."""

from __future__ import annotations

import json
import shutil

import pytest

from ppvilg.commands import main
from ppvilg.export import ProofError, prove_bundle
from ppvilg.inference import fastest_proven, machine_name, proofs, read_proofs
from ppvilg.inference.manifest import ONNX, stored
from ppvilg.pipelines import ErnieViLG2Pipeline
from tests.bundles import BACKENDS

pytestmark = pytest.mark.skipif("onnxruntime" not in BACKENDS, reason="onnxruntime or its converter is not installed")


@pytest.fixture
def copied(bundle, tmp_path, monkeypatch):
    """A copy that was proven nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(bundle, tmp_path / "copied")
    shutil.rmtree(folder / "proofs")
    return folder


def test_an_unproven_bundle_is_proven_and_then_runs(copied, capsys):
    with pytest.raises(ValueError, match="is not proven on this machine: run 'ppvilg prove"):
        ErnieViLG2Pipeline.from_exported(copied)
    with pytest.raises(ValueError, match="proven for no back end, not for backend 'cpu'"):
        ErnieViLG2Pipeline.from_exported(copied, "cpu")
    assert main(["prove", str(copied), "--backends", "cpu", "onnxruntime", "--threads", "1"]) == 0
    assert "expert_01" in capsys.readouterr().out
    found = read_proofs(copied)[machine_name()]
    assert list(found) == ["cpu", "onnxruntime"] and found["cpu"].threads == 1
    name, proof = fastest_proven(copied)
    assert proof.step_seconds == min(each.step_seconds for each in found.values())
    assert ErnieViLG2Pipeline.from_exported(copied).vae.backend == name
    assert f"back end {name}, the fastest proven here" in capsys.readouterr().err


def test_where_the_bundle_cannot_be_written_to(copied, tmp_path, monkeypatch):
    write, user_folder = proofs.write_whole, tmp_path / "cache" / "ppvilg" / "proofs"

    def elsewhere_alone(place, content):
        if place.is_relative_to(copied):
            raise OSError(30, "Read-only file system")
        write(place, content)

    monkeypatch.setattr(proofs, "write_whole", elsewhere_alone)
    prove_bundle(copied, ["onnxruntime"])
    (file,) = user_folder.rglob("*.json")
    assert file.stem == machine_name() and fastest_proven(copied)[0] == "onnxruntime"
    assert ErnieViLG2Pipeline.from_exported(copied).vae.backend == "onnxruntime"


def test_a_proof_is_of_one_export_and_one_version(copied, monkeypatch):
    prove_bundle(copied, ["onnxruntime"])
    monkeypatch.setattr(proofs, "installed_version", lambda options: "0.1")
    with pytest.raises(ValueError, match="with the versions installed now"):
        fastest_proven(copied)
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8") + "\n", encoding="utf-8")
    assert read_proofs(copied) == {}
    (copied / "proofs" / "other.json").write_text("{")
    with pytest.raises(ValueError, match="other.json is no proof that can be read"):
        read_proofs(copied)


def test_an_altered_onnx_graph(copied, capsys):
    import onnx

    file = copied / "expert_01" / ONNX
    model = onnx.load(str(file))
    bias = next(each for each in model.graph.initializer if each.dims == [8])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 1
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(file))
    assert main(["prove", str(copied), "--backends", "onnxruntime"]) == 1
    assert f"expert_01/{ONNX} has other contents than when the bundle was proven" in capsys.readouterr().err
    manifest = copied / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    content["parts"]["expert_01"]["files"][ONNX] = vars(stored(file))  # as who changes it on purpose would
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ProofError, match="expert_01 on backend 'onnxruntime' is off by"):
        prove_bundle(copied, ["onnxruntime"])
    file.write_bytes(b"no graph at all")
    content["parts"]["expert_01"]["files"][ONNX] = vars(stored(file))
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"expert_01/{ONNX} cannot be loaded by backend 'onnxruntime'"):
        prove_bundle(copied, ["onnxruntime"])


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    from paddle import nn

    from ppvilg.export import graphs
    from ppvilg.inference.manifest import Port

    class Part(nn.Layer):
        def __init__(self):
            super().__init__()
            self.weight = self.create_parameter([1])

        def forward(self, x):
            return (x * self.weight).lgamma()

    port = Port("x", [-1, 4], "float32")
    with pytest.raises(ValueError, match="part cannot be converted to ONNX: paddle2onnx .* knows no operator lgamma$"):
        graphs.write_part(graphs.Plan("part", Part(), [port], [port]), tmp_path, formats=[ONNX])
