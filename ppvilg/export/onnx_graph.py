"""Paddle's static graph of a part as an ONNX file: converted by paddle2onnx, folded, attention as one operator."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ppvilg.inference.manifest import GRAPH, ONNX, ONNX_WEIGHTS, WEIGHTS, Port

OPSET = 17
SINGLE_FILE_BYTES = 2**30  # of weights; more are put beside the graph, for protobuf ends at 2 GiB
PACKAGES = ("paddle2onnx", "onnx", "onnxruntime")
# In a process of its own: paddle2onnx ends the one it runs in when it meets an operator that it does not know, and does
# not say which. Its own optimizer is not asked for, for it installs packages.
_CONVERT = """
import json, sys, paddle2onnx
from paddle2onnx.paddle2onnx_cpp2py_export import get_all_supported_operators_pir
graph, weights, target, opset, external = sys.argv[1:]
blocks = json.load(open(graph, encoding="utf-8"))["program"]["regions"][0]["blocks"]
names = {op["#"].partition(".")[2] for block in blocks for op in block["ops"]}
print("not on its list:", *sorted(names - set(get_all_supported_operators_pir())), flush=True)
settings = {"opset_version": int(opset), "optimize_tool": "none", "external_file": external}
paddle2onnx.export(graph, weights, save_file=target, **settings)
"""
# Those that the graphs of a pipeline have and that its list holds by older names, or not at all.
_KNOWN = set(
    "add arange cast combine data divide expand fetch flatten floor_divide full greater_equal greater_than less_equal "
    "less_than matmul maximum minimum multiply not_equal parameter remainder share_data_ squeeze subtract unsqueeze"
    .split()
) | {""}
_FAULT = re.compile(r"(?:\[ERROR\])?\[Paddle2ONNX\]\s*(.*\[OP:.*)")
_UNLISTED = re.compile(r"^not on its list:(.*)$", re.MULTILINE)


def require_converter() -> None:
    """ValueError with the pip command unless paddle2onnx and what it needs are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an export to ONNX needs {', '.join(missing)}: pip install 'ppvilg[onnx]', on Python 3.12 at "
            "most (to export only, never to run)"
        )


def write_onnx(source: Path, target: Path, inputs: list[Port], outputs: list[Port]) -> list[str]:
    """Converts the Paddle graph in `source` to target/model.onnx; returns the names of the files written.

    ValueError names the part and the operator that paddle2onnx does not know.
    """
    _narrow_doubles(source / GRAPH)
    large = (source / WEIGHTS).stat().st_size > SINGLE_FILE_BYTES
    raw = source / "raw.onnx"
    _convert(source, raw, large)
    folded = source / "folded" / ONNX
    folded.parent.mkdir()
    _fold(raw, folded, large)
    _finish(folded, inputs, outputs)
    names = [file.name for file in sorted(folded.parent.iterdir())]
    for name in names:
        shutil.move(folded.with_name(name), target / name)
    return names


def _narrow_doubles(graph: Path) -> None:
    """Makes double attributes floats, as those of norms and pads: paddle2onnx 2.1 puts whatever is in memory for them.

    It reads those of `full`, and no others.
    """
    content = json.loads(graph.read_text(encoding="utf-8"))
    for block in content["program"]["regions"][0]["blocks"]:
        for op in block["ops"]:
            if op["#"] not in ("p", "1.full"):  # parameters have attributes of another form
                for attribute in op.get("A", []):
                    kind = attribute["AT"]
                    kind["#"] = "0.a_f32" if kind["#"] == "0.a_f64" else kind["#"]
    graph.write_text(json.dumps(content), encoding="utf-8")


def _convert(source: Path, raw: Path, large: bool) -> None:
    external = str(raw.with_suffix(".data")) if large else ""
    files = [str(source / name) for name in (GRAPH, WEIGHTS)]
    command = [sys.executable, "-c", _CONVERT, *files, str(raw), str(OPSET), external]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and raw.is_file():
        return
    said = done.stdout + done.stderr
    faults = _FAULT.findall(said)
    last = said.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    unlisted = [name for names in _UNLISTED.findall(said) for name in names.split() if name not in _KNOWN]
    operators = f" and knows no operator {', '.join(unlisted)}" if unlisted and not faults else ""
    raise ValueError(
        f"{source.name} cannot be converted to ONNX: paddle2onnx says {(faults or last)[0].strip()!r}{operators}"
    )


def _fold(raw: Path, folded: Path, large: bool) -> None:
    """Computes what is constant and drops what does nothing, by ONNX Runtime's portable rules."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    if large:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", ONNX_WEIGHTS)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "4096")
    onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])


def _finish(file: Path, inputs: list[Port], outputs: list[Port]) -> None:
    """Fuses attention and gives inputs and outputs their names and dynamic sizes."""
    import onnx

    from .onnx_attention import DOMAIN, fuse_attention

    model = onnx.load(str(file), load_external_data=False)
    fuse_attention(model)
    used = {node.domain for node in model.graph.node} | {""}
    for i in reversed(range(len(model.opset_import))):
        if model.opset_import[i].domain not in used - {"ai.onnx"}:
            del model.opset_import[i]
    assert {entry.domain for entry in model.opset_import} <= {"", DOMAIN}
    for found, port in zip(model.graph.output, outputs):
        _rename(model.graph, found.name, port.name)
    for found, port in zip([*model.graph.input, *model.graph.output], [*inputs, *outputs]):
        for axis, (dim, size) in enumerate(zip(found.type.tensor_type.shape.dim, port.shape)):
            if size == -1:
                dim.dim_param = "batch" if axis == 0 else f"{port.name}_{axis}"
    model.producer_name = "ppvilg"
    onnx.save(model, str(file))


def _rename(graph, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for output in graph.output:
        output.name = new if output.name == old else output.name
