"""Post-training quantisation: matrix products and convolutions of an exported graph in 8-bit integers, for CPUs.

The form is QDQ, which ONNX Runtime and OpenVINO both read: a QuantizeLinear and a DequantizeLinear stand before a
layer, its weights are int8 with a scale for each output channel, and the runtime computes what lies between in
integers. Activations are symmetric with one scale a tensor: OpenVINO runs asymmetric ones slower than bfloat16.
LayerNorm, softmax, gates, selection, attention, residual sums and the layers that give the answer stay in float32.

A value is quantised where it is made, before it is gathered, rolled or reshaped on its way to a layer: then LayerNorm,
GELU and attention write integers, and a quarter of the bytes is moved. This is why onnxruntime.quantization is not used
here; nor does it calibrate a layer that an image gives no token to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spt_deploy.errors import UsageError
from spt_deploy.image_input import Images
from spt_export.calibration import watch_magnitudes
from spt_export.precision import note_precision

LARGEST = 127  # of a symmetric int8; -128 is left out, so that the scale is the same on both sides of zero
LAYERS = frozenset({"MatMul", "Gemm", "Conv"})
# Nodes that only move their first input's elements: integers can go through in place of floats.
MOVING = frozenset({"Reshape", "Transpose", "Gather", "Squeeze", "Unsqueeze", "Slice", "Identity"})
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # of a layer that has only seen zeros


@dataclass(frozen=True)
class Quantized:
    """A graph with layers in 8-bit integers.

    Attributes:
        model: the graph.
        narrow: names of the layers that compute in int8.
        wide: names of the layers with weights that were kept in float32, each with the reason.
        images: that the scales come from.
    """

    model: ModelProto
    narrow: tuple[str, ...]
    wide: dict[str, str]
    images: int


def to_int8(
    model: ModelProto,
    batches: Iterable[Images],
    progress: Callable[[int], None] = lambda images: None,
    threshold: float | None = None,
) -> Quantized:
    """Quantise an exported graph.

    Args:
        model: float32, as `exporter.to_onnx` makes it, with its functions inlined; it is left as it is.
        batches: of preprocessed images, each as the graph takes them; the largest magnitude of an activation gives its
            scale.
        progress: hears how many images are done.
        threshold: in (0, 1), to give to a graph that has it as an input.

    Raises:
        UsageError: when the graph still has functions, or no layer that can be quantised.
        InputError: when there is no image.
        RuntimeMissingError: when ONNX Runtime, in which the images run, is not installed.
    """
    if model.functions:
        raise UsageError("the graph has functions, which hide its layers; inline them: onnx.inliner")
    result = ModelProto()
    result.CopyFrom(model)
    wide = _kept_wide(result)
    layers = [node for node in weighted_layers(result) if node.name not in wide]
    if not layers:
        raise UsageError("the graph has no float32 layer to quantise; give the model that spt-deploy export makes")
    graph = _Graph(result)
    sources = list(dict.fromkeys(graph.source_of(node.input[0]) for node in layers))
    largest, images = np.zeros(len(sources)), 0
    for count, found in watch_magnitudes(model, sources, batches, threshold):
        largest, images = np.maximum(largest, found), images + count
        progress(images)
    if not np.isfinite(largest).all():
        name = sources[int(np.argmin(np.isfinite(largest)))]
        raise UsageError(f"{name} is not finite on these images; a model that gives NaN or infinity has no int8 form")
    graph.quantise(layers, dict(zip(sources, largest.tolist(), strict=True)))
    note_precision(result, "int8")
    return Quantized(result, tuple(node.name for node in layers), wide, images)


def without_outputs(model: ModelProto, unwanted: Sequence[str]) -> ModelProto:
    """A copy without these outputs and without the nodes and weights that only they needed."""
    result = ModelProto()
    result.CopyFrom(model)
    kept = [output for output in result.graph.output if output.name not in unwanted]
    del result.graph.output[:]
    result.graph.output.extend(kept)
    _drop_unused(result.graph)
    return result


def weighted_layers(model: ModelProto) -> list[NodeProto]:
    """The matrix products and convolutions of a graph whose second input is a weight, in the graph's order."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in weights]


def _kept_wide(model: ModelProto) -> dict[str, str]:
    """Layers that stay in float32, by name, each with the reason."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    added = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    answering, seeing = _answering(model), _seeing_pixels(model)
    wide: dict[str, str] = {}
    for node in weighted_layers(model):
        shape = shapes[node.input[1]]
        if shape[_channel_axis(node)] == 1:
            wide[node.name] = "a gate: a score needs its digits"
        elif node.name in seeing:
            wide[node.name] = "the patch embedding: it sees the pixels"
        elif node.name in answering:
            wide[node.name] = "its output is the answer"
        elif node.op_type == "MatMul" and node.output[0] not in added:
            # OpenVINO would compute it once for each of its consumers: the scale after it moves into all of them.
            wide[node.name] = "has no bias: OpenVINO would compute it twice"
    return wide


def _answering(model: ModelProto) -> set[str]:
    """Names of the layers with no other layer between them and an output of the graph."""
    makers, layers = _makers(model), {node.name for node in weighted_layers(model)}
    reached = _before([value.name for value in model.graph.output], makers, layers)
    return {makers[name].name for name in reached if name in makers} & layers


def _seeing_pixels(model: ModelProto) -> set[str]:
    """Names of the layers with no other layer between them and the images."""
    makers, layers = _makers(model), weighted_layers(model)
    names, images = {node.name for node in layers}, model.graph.input[0].name
    return {node.name for node in layers if images in _before([node.input[0]], makers, names)}


def _makers(model: ModelProto) -> dict[str, NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def _before(values: list[str], makers: dict[str, NodeProto], layers: set[str]) -> set[str]:
    """Names of these values and of all that they are made of, back to the outputs of the last layers before them."""
    found: set[str] = set()
    waiting = list(values)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        maker = makers.get(name)
        # What a shape is taken from does not matter.
        if maker is not None and maker.name not in layers and maker.op_type not in ("Shape", "Size"):
            waiting.extend(maker.input)
    return found


def _channel_axis(layer: NodeProto) -> int:
    """The axis of a layer's weights that its output channels lie along."""
    if layer.op_type == "Conv":
        return 0
    return 0 if any(attribute.name == "transB" and attribute.i for attribute in layer.attribute) else 1


class _Graph:
    """A graph whose layers are being quantised, in place."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._first: list[NodeProto] = []  # dequantised weights
        self._after: dict[str, list[NodeProto]] = {}  # nodes to place behind the one that makes a value
        self._made: dict[str, str] = {}  # a value or weight, and its dequantised twin

    def source_of(self, value: str) -> str:
        """The value that a layer's input is made of by moving alone."""
        while (maker := self._makers.get(value)) and maker.op_type in MOVING and maker.input[0] not in self._weights:
            value = maker.input[0]
        return value

    def quantise(self, layers: Sequence[NodeProto], magnitudes: dict[str, float]) -> None:
        """Give each layer int8 weights and an int8 input, whose source has the magnitude that is named."""
        for layer in layers:
            layer.input[0] = self._quantised(layer.input[0], magnitudes)
            layer.input[1] = self._quantised_weight(layer.input[1], _channel_axis(layer))
        nodes = list(self._first)
        for value in self._graph.input:
            self._place_after([value.name], nodes)
        for node in self._graph.node:
            nodes.append(node)
            self._place_after(node.output, nodes)
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # the field owns what it holds
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        _drop_unused(self._graph)

    def _place_after(self, values: Iterable[str], nodes: list[NodeProto]) -> None:
        for value in values:
            for node in self._after.get(value, ()):
                nodes.append(node)
                self._place_after(node.output, nodes)

    def _quantised(self, value: str, magnitudes: dict[str, float]) -> str:
        """The value through int8: its source is, and what moves it moves that."""
        if value in self._made:
            return self._made[value]
        if value == self.source_of(value):
            scale, zero = f"{value}_scale", f"{value}_zero"
            step = np.float32(max(magnitudes[value] / LARGEST, SMALLEST_SCALE))
            self._add_weight(scale, step)
            self._add_weight(zero, np.int8(0))
            twin = f"{value}_dequantized"
            self._after.setdefault(value, []).extend(
                [
                    helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}_int8"], f"{value}_quantize"),
                    helper.make_node("DequantizeLinear", [f"{value}_int8", scale, zero], [twin], f"{value}_dequantize"),
                ]
            )
        else:
            maker = self._makers[value]
            moved = NodeProto()
            moved.CopyFrom(maker)
            moved.name, twin = f"{maker.name}_of_int8", f"{value}_of_int8"
            moved.input[0] = self._quantised(maker.input[0], magnitudes)
            moved.output[0] = twin
            self._after.setdefault(value, []).append(moved)  # its other inputs are there by then
        self._made[value] = twin
        return twin

    def _quantised_weight(self, name: str, axis: int) -> str:
        if name not in self._made:
            values = numpy_helper.to_array(self._weights[name])
            others = tuple(i for i in range(values.ndim) if i != axis)
            scales = np.maximum(np.abs(values).max(others, keepdims=True) / LARGEST, SMALLEST_SCALE).astype(np.float32)
            rounded = np.clip(np.rint(values / scales), -LARGEST, LARGEST).astype(np.int8)
            self._add_weight(f"{name}_int8", rounded)
            self._add_weight(f"{name}_scale", scales.reshape(-1))
            twin = self._made[name] = f"{name}_dequantized"
            self._first.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [twin], f"{name}_dequantize", axis=axis
                )
            )
        return self._made[name]

    def _add_weight(self, name: str, values: npt.NDArray[np.generic] | np.generic) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the nodes and weights that no output needs."""
    needed = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    del graph.value_info[:]
