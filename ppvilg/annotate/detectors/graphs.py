"""A detector's graph under Paddle Inference or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppvilg.files import damage_of, read_json

GRAPHS = ("model.json", "model.pdmodel", "inference.json", "inference.pdmodel")


class PaddleGraph:
    """A graph under Paddle Inference, on the CPU without oneDNN, which fails on many detectors, or on a GPU.

    ValueError: the files are no graph that the installed Paddle can read.
    """

    def __init__(self, graph: Path, weights: Path, backend: str = "cpu"):
        from paddle import inference

        from ppvilg.inference import BackendOptions
        from ppvilg.inference.engines.paddle_inference import graph_config

        self._graph = graph
        try:
            self._predictor = inference.create_predictor(graph_config(graph, weights, BackendOptions(backend)))
        except Exception as error:  # Paddle answers damage with its own errors, whose base is no public class
            raise ValueError(f"{damage_of(graph)} or {weights.name} is ({_last_line(error)})") from None
        shapes = declared_shapes(graph)
        self.inputs = {name: shapes.get(name, [-1]) for name in self._predictor.get_input_names()}

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, in order."""
        for name, value in feeds.items():
            self._predictor.get_input_handle(name).copy_from_cpu(value)
        try:
            self._predictor.run()
        except Exception as error:  # as above
            raise _failure(self._graph, feeds, error) from None
        names = self._predictor.get_output_names()
        return [self._predictor.get_output_handle(name).copy_to_cpu() for name in names]


class OnnxGraph:
    """A graph under ONNX Runtime. ImportError without it; ValueError: the file is no graph that it can read."""

    def __init__(self, path: Path, backend: str = "cpu"):
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(f"{path} needs ONNX Runtime: pip install 'ppvilg[onnx]'") from None
        self._path, options = path, onnxruntime.SessionOptions()
        options.log_severity_level = 3
        provider = "CPUExecutionProvider" if backend == "cpu" else "CUDAExecutionProvider"
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's errors have no public base class
            raise ValueError(f"{damage_of(path)} ({_last_line(error)})") from None
        self.inputs = {
            each.name: [side if isinstance(side, int) else -1 for side in each.shape]
            for each in self._session.get_inputs()
        }

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, in order."""
        try:
            return self._session.run(None, feeds)
        except Exception as error:  # as above
            raise _failure(self._path, feeds, error) from None


def declared_shapes(graph: Path) -> dict[str, list[int]]:
    """{input: shape} that a Paddle graph asks for, which its predictor does not tell; -1 where any size goes."""
    if graph.suffix == ".pdmodel":
        from paddle.base.core import ProgramDesc

        program = ProgramDesc(graph.read_bytes())  # its blocks and variables are gone when it is
        variables = program.block(0).all_vars()
        return {each.name(): list(each.shape()) for each in variables if each.need_check_feed()}
    operators = read_json(graph)["program"]["regions"][0]["blocks"][0]["ops"]
    shapes = {}
    for operator in operators:
        if operator["#"] == "1.data":
            attributes = {each["N"]: each["AT"]["D"] for each in operator["A"]}
            shapes[attributes["name"]] = attributes["shape"]
    return shapes


def _failure(graph: Path, feeds: dict[str, np.ndarray], error: Exception) -> ValueError:
    """The preprocessing of another model, say, gives sizes that a graph cannot take."""
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
    return ValueError(f"{graph} fails on {shapes}: does the preprocessing beside it fit it? ({_last_line(error)})")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
