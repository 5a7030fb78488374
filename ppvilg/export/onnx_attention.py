"""Attention in an ONNX graph as one operator, which ONNX Runtime computes without writing its map.

com.microsoft.MultiHeadAttention is what OpenVINO knows too; a map of 16384 x 16384 for eight heads would be 8 GiB.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft"
_HEADS_FIRST, _HEADS_FIRST_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]  # (N, S, H, d) -> (N, H, S, d), (N, H, d, S)


def fuse_attention(model: onnx.ModelProto) -> int:
    """Replaces every softmax(Q K^T * scale) V over split heads in `model`; returns how many there were."""
    graph = _Graph(model.graph)
    found = {}
    for node in model.graph.node:
        attention = graph.attention_at(node) if node.op_type == "Softmax" else None
        if attention is not None:
            found[attention.output] = attention
    nodes = [
        found[node.output[0]].as_node() if node.output and node.output[0] in found else node
        for node in model.graph.node
    ]
    _keep(model.graph, _needed(nodes, {output.name for output in model.graph.output}))
    if found and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(found)


class _Heads(NamedTuple):
    """A tensor (N, S, H * d) that is split into heads."""

    tensor: str
    count: int


class _Attention(NamedTuple):
    query: str
    key: str
    value: str
    heads: int
    scale: float
    output: str

    def as_node(self) -> onnx.NodeProto:
        inputs = [self.query, self.key, self.value]
        settings = {"num_heads": self.heads, "scale": self.scale}
        name = f"attention.{self.output}"
        return helper.make_node("MultiHeadAttention", inputs, [self.output], name, domain=DOMAIN, **settings)


class _Graph:
    """Who makes and who takes each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {output: node for node in graph.node for output in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.takers[name].append(node)
        self.constants = {each.name: each for each in graph.initializer}

    def attention_at(self, softmax: onnx.NodeProto) -> _Attention | None:
        """The attention whose softmax this is; None for any other form."""
        if _attribute(softmax, "axis") not in (-1, 3):
            return None
        scale, scores = 1.0, self._made_by(softmax.input[0], "MatMul")
        if scores is None:
            scaled = self._made_by(softmax.input[0], "Mul")
            factor = None if scaled is None else self._number(scaled.input[1])
            if factor is None:
                return None
            scale, scores = factor, self._made_by(scaled.input[0], "MatMul")
        weighted = self._only_taker(softmax, "MatMul")
        if scores is None or weighted is None or weighted.input[0] != softmax.output[0]:
            return None
        query, value = (self._heads(name, _HEADS_FIRST) for name in (scores.input[0], weighted.input[1]))
        key = self._heads(scores.input[1], _HEADS_FIRST_TRANSPOSED)
        turned = self._only_taker(weighted, "Transpose")
        if turned is None or _attribute(turned, "perm") != _HEADS_FIRST:
            return None
        joined = self._only_taker(turned, "Reshape")
        shape = [] if joined is None else self._values(joined.input[1])
        if None in (query, key, value) or len({query.count, key.count, value.count}) != 1 or len(shape) != 3:
            return None
        return _Attention(query.tensor, key.tensor, value.tensor, query.count, scale, joined.output[0])

    def _heads(self, name: str, order: list[int]) -> _Heads | None:
        turned = self._made_by(name, "Transpose")
        if turned is None or _attribute(turned, "perm") != order:
            return None
        split = self._made_by(turned.input[0], "Reshape")
        shape = [] if split is None else self._values(split.input[1])
        if len(shape) != 4 or shape[:2] != [0, 0] or shape[2] < 1:
            return None
        return _Heads(split.input[0], shape[2])

    def _made_by(self, name: str, kind: str) -> onnx.NodeProto | None:
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == kind else None

    def _only_taker(self, node: onnx.NodeProto, kind: str) -> onnx.NodeProto | None:
        takers = self.takers[node.output[0]]
        return takers[0] if len(takers) == 1 and takers[0].op_type == kind else None

    def _values(self, name: str) -> list:
        constant = self.constants.get(name)
        return [] if constant is None else numpy_helper.to_array(constant).reshape(-1).tolist()

    def _number(self, name: str) -> float | None:
        values = self._values(name)
        return float(values[0]) if len(values) == 1 else None


def _attribute(node: onnx.NodeProto, name: str):
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return list(value) if isinstance(value, (list, tuple)) or attribute.ints else value
    return -1 if name == "axis" else None  # Softmax's default since opset 13


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order (a graph lists makers before takers)."""
    kept, wanted = [], set(outputs)
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Leaves these nodes in the graph, and the constants that they take."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    taken = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in taken:
            del graph.initializer[i]
