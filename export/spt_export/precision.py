"""Mixed precision: an exported float32 graph rewritten so that its heavy work runs in float16 or bfloat16.

TensorRT 11 has no precision flags: a network is strongly typed, and what a layer computes in is a property of the
graph. So the graph itself says it: matrix products, convolutions and what lies between them take 16 bits; LayerNorm,
softmax, gates, selection, pooling and box decoding stay in float32, and a Cast stands wherever the two meet. Inputs and
outputs stay float32. The ``spt`` nodes and their functions survive, so the rewritten file still runs wherever the
original did.

onnxconverter-common does not fit: it knows no bfloat16, cannot give a node inputs of two precisions (PackedQKV takes
16-bit rows and a float32 gate), and puts values that pass between two float32 nodes through 16 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, cast

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spt_deploy.errors import UsageError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.model.domain import DOMAIN

Precision = Literal["fp16", "bf16"]
TYPES: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOAT = TensorProto.FLOAT

# Where the time goes.
HEAVY = frozenset({"MatMul", "Gemm", "Conv", "PackedQKV", "PackedAttention", "UnpackProject"})
# These follow what they are given: 16 bits where one of their values has 16 bits already.
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Gelu", "Relu"})
MOVING = frozenset(
    {
        *("Reshape", "Transpose", "Slice", "Concat", "Pad", "Gather", "Squeeze", "Unsqueeze", "Split", "Expand"),
        *("Identity", "Flatten", "Tile", "DepthToSpace", "SpaceToDepth", "Resize"),
    }
)
_MOVED = {"Pad": (0, 2)}  # the inputs of a moving node that are moved; Concat's are all, the others' the first
# Inputs that stay float32 in a 16-bit node: a gate is a score, and a score needs its digits.
WIDE_INPUTS = {"PackedQKV": (1,)}
BF16_OPSET = 22
LARGEST_FP16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Rewritten:
    """A graph in mixed precision.

    Attributes:
        model: the graph.
        precision: of its narrow part.
        narrow: names of the nodes that compute in it.
        wide: names of the nodes of a kind that could, and were kept in float32, each with the reason.
    """

    model: ModelProto
    precision: Precision
    narrow: tuple[str, ...]
    wide: dict[str, str]


def to_mixed_precision(
    model: ModelProto, precision: Precision, keep_fp32: Sequence[str] = (), out_of_range: Collection[str] = ()
) -> Rewritten:
    """Rewrite an exported graph.

    Args:
        model: as `exporter.to_onnx` makes it, float32; it is left as it is.
        precision: ``fp16`` or ``bf16``.
        keep_fp32: patterns of names of nodes or of their weights (``*`` and ``?``) that stay in float32.
        out_of_range: names of nodes that were seen to leave fp16's range (`calibration.py`); they stay in float32.

    Raises:
        UsageError: when the precision is unknown, the graph has no float32 matrix product (it was rewritten before), or
            a pattern fits no node.
    """
    if precision not in TYPES:
        raise UsageError(f"precision is {precision!r}; known are {', '.join(TYPES)}")
    result = ModelProto()
    result.CopyFrom(model)
    floats = _float_values(result)
    wide = _kept_wide(result, floats, keep_fp32, out_of_range, precision)
    rewriter = _Rewriter(result, TYPES[precision], floats, wide)
    rewriter.rewrite()
    if precision == "bf16":
        _raise_opset(result)
    if not rewriter.narrow and keep_fp32:
        raise UsageError(
            f"--keep-fp32 {' '.join(keep_fp32)} leaves nothing in {precision}; name fewer layers, or build in float32"
        )
    if not rewriter.narrow:
        raise UsageError("the graph has no float32 matrix product; give the file that spt-deploy export wrote")
    note_precision(result, precision)
    narrow = tuple(name for name in rewriter.narrow)
    return Rewritten(result, precision, narrow, {n: r for n, r in wide.items() if n})


def heavy_nodes(model: ModelProto, precision: str) -> int:
    """How many matrix products and convolutions of a graph have weights of ``fp32``, ``fp16`` or ``bf16``."""
    wanted = FLOAT if precision == "fp32" else TYPES[cast(Precision, precision)]
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == wanted}
    layers = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    return sum(not weights.isdisjoint(node.input) for node in layers)


def note_precision(model: ModelProto, precision: str) -> None:
    """Make the file say of itself that it is ``fp16``, ``bf16`` or ``int8``."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            facts = ModelFacts.from_json(entry.value, "the model")
            entry.value = replace(facts, precision=precision).to_json()


def _raise_opset(model: ModelProto) -> None:
    """Convolution and others take bfloat16 from opset 22 on; no operator that an export holds changed its meaning."""
    for part in (model, *model.functions):
        for opset in part.opset_import:
            if not opset.domain:
                opset.version = max(opset.version, BF16_OPSET)


def _float_values(model: ModelProto) -> set[str]:
    """Names of all float32 values of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == FLOAT}
    floats |= {t.name for t in model.graph.initializer if t.data_type == FLOAT}
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type != "SelectTokens":
            floats.update(node.output)
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_float"):
            attribute = node.attribute[0]
            if attribute.name == "value_float" or attribute.t.data_type == FLOAT:
                floats.update(node.output)
    return floats


def _kept_wide(
    model: ModelProto,
    floats: set[str],
    patterns: Sequence[str],
    out_of_range: Collection[str],
    precision: Precision,
) -> dict[str, str]:
    """Nodes that stay in float32 though their kind could be narrow, by name, with the reason."""
    producers = {output: node for node in model.graph.node for output in node.output}
    wide: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in ("SelectTokens", "PackedQKV"):
            start = [node.input[0], node.input[2]] if node.op_type == "SelectTokens" else [node.input[1]]
            for found in _upward(start, producers, includes_first_layer=True):  # the layer is the gate itself
                wide[found.name] = "gate or score"
    ends = [output.name for output in model.graph.output if output.name in floats]
    for found in _upward(ends, producers, includes_first_layer=False):
        wide.setdefault(found.name, "follows the last layer")
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        given = [constants.get(node.input[index]) for index in _narrow_inputs(node)]
        if precision == "fp16" and any(_too_large(tensor) for tensor in given):
            wide[node.name] = "a weight beyond fp16's range"
    beyond = {output for node in model.graph.node if node.name in out_of_range for output in node.output}
    for node in model.graph.node:
        if node.name in out_of_range:
            wide[node.name] = "left fp16's range in calibration"
        elif beyond.intersection(node.input):
            wide.setdefault(node.name, "is given what left fp16's range")
    for pattern in patterns:
        found_names = [
            n.name for n in model.graph.node if _fits(n, pattern) and n.op_type in HEAVY | ELEMENTWISE | MOVING
        ]
        if not found_names:
            raise UsageError(f"--keep-fp32 {pattern} fits no layer; names are those of the graph's nodes and weights")
        wide |= dict.fromkeys(found_names, f"--keep-fp32 {pattern}")
    return wide


def _upward(values: Iterable[str], producers: dict[str, NodeProto], includes_first_layer: bool) -> list[NodeProto]:
    """Nodes above ``values`` up to the heavy ones nearest to them, these included or not."""
    found: dict[str, NodeProto] = {}
    todo = list(values)
    while todo:
        node = producers.get(todo.pop())
        if node is None or node.name in found:
            continue
        is_layer = node.op_type in HEAVY
        if not is_layer or includes_first_layer:
            found[node.name] = node
        if not is_layer:
            todo += node.input
    return list(found.values())


def _narrow_inputs(node: NodeProto) -> tuple[int, ...]:
    """Places of the inputs that have 16 bits where the node has."""
    every = tuple(range(len(node.input)))
    if node.op_type in HEAVY | ELEMENTWISE:
        return tuple(index for index in every if index not in WIDE_INPUTS.get(node.op_type, ()))
    if node.op_type in MOVING:
        moved = every if node.op_type == "Concat" else _MOVED.get(node.op_type, (0,))
        return tuple(index for index in moved if index < len(every))
    return ()


def _too_large(tensor: TensorProto | None) -> bool:
    if tensor is None or tensor.data_type != FLOAT:
        return False
    array = numpy_helper.to_array(tensor)
    return bool(array.size) and float(np.abs(array).max()) > LARGEST_FP16


def _fits(node: NodeProto, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (node.name, *node.input))


class _Rewriter:
    """Goes through the nodes in their order, casting what each is given to what it computes in."""

    def __init__(self, model: ModelProto, narrow_type: int, floats: set[str], wide: dict[str, str]) -> None:
        self.graph = model.graph
        self.narrow: list[str] = []
        self._type, self._floats, self._wide = narrow_type, floats, wide
        self._dtype = helper.tensor_dtype_to_np_dtype(narrow_type)
        self._narrow_values: set[str] = set()
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._casts: dict[tuple[str, bool], str] = {}
        self._nodes: list[NodeProto] = []

    def rewrite(self) -> None:
        """Do it, in place."""
        outputs = {output.name for output in self.graph.output}
        for node in list(self.graph.node):
            if node.op_type == "Constant":
                self._fold(node)
                continue
            is_narrow = self._is_narrow(node)
            if not is_narrow and self._is_one_column(node):
                self._sum_up(node)
                continue
            self._nodes.append(node)
            place = len(self._nodes) - 1
            for index, name in enumerate(node.input):
                if name in self._floats:
                    node.input[index] = self._as(name, is_narrow and index in _narrow_inputs(node), place)
                    place = len(self._nodes) - 1
            if is_narrow:
                self.narrow.append(node.name)
                self._narrow_values.update(name for name in node.output if name in self._floats)
        for name in outputs & self._narrow_values:
            self._widen_output(name)
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input} | outputs
        kept = [tensor for tensor in self._constants.values() if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]

    def _is_one_column(self, node: NodeProto) -> bool:
        """A gate: float32 rows times one column of weights."""
        weight = self._constants.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and len(weight.dims) == 2 and weight.dims[1] == 1

    def _sum_up(self, node: NodeProto) -> None:
        """Write it as a product and a sum: nothing is gained by a matrix product of one column, and TensorRT-RTX has
        none in float32 for GPUs of compute capability 7.5."""
        row, product, axis = f"{node.input[1]}_row", f"{node.output[0]}_product", "last_axis"
        if row not in self._constants:
            column = numpy_helper.to_array(self._constants[node.input[1]])
            self._constants[row] = numpy_helper.from_array(column[:, 0].copy(), row)
        self._constants[axis] = numpy_helper.from_array(np.array([-1], dtype=np.int64), axis)
        rows = self._as(node.input[0], narrow=False, place=len(self._nodes))
        self._nodes.append(helper.make_node("Mul", [rows, row], [product], node.name))
        self._nodes.append(
            helper.make_node("ReduceSum", [product, axis], [node.output[0]], f"{node.name}_sum", keepdims=1)
        )

    def _is_narrow(self, node: NodeProto) -> bool:
        if node.name in self._wide or not any(name in self._floats for name in node.output):
            return False
        if node.op_type in HEAVY:
            return True
        return any(node.input[index] in self._narrow_values for index in _narrow_inputs(node))

    def _as(self, name: str, narrow: bool, place: int) -> str:
        """The value in the wanted precision; a Cast is put before the node at ``place`` where it is in the other."""
        if narrow == (name in self._narrow_values):
            return name
        key = (name, narrow)
        if key in self._casts:
            return self._casts[key]
        if name in self._constants:
            cast = f"{name}_narrow"
            array = numpy_helper.to_array(self._constants[name])
            self._constants[cast] = numpy_helper.from_array(array.astype(self._dtype), cast)
        else:
            cast = f"{name}_{'narrow' if narrow else 'wide'}"
            to = self._type if narrow else FLOAT
            self._nodes.insert(place, helper.make_node("Cast", [name], [cast], f"cast_{cast}", to=to))
        self._casts[key] = cast
        if narrow:
            self._narrow_values.add(cast)
        return cast

    def _fold(self, node: NodeProto) -> None:
        """A Constant node becomes an initializer, which can be had in either precision."""
        value = helper.get_node_attr_value(node, node.attribute[0].name)
        if not isinstance(value, TensorProto):
            dtype = np.float32 if node.attribute[0].name.startswith("value_float") else np.int64
            value = numpy_helper.from_array(np.asarray(value, dtype=dtype))
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        self._constants[tensor.name] = tensor

    def _widen_output(self, name: str) -> None:
        """A graph output keeps its name and float32: what made it makes ``name_narrow``, and a Cast follows."""
        narrow = f"{name}_narrow_output"
        for node in self._nodes:
            for values in (node.input, node.output):
                for index, value in enumerate(values):
                    if value == name:
                        values[index] = narrow
        self._nodes.append(helper.make_node("Cast", [narrow], [name], f"cast_{narrow}", to=FLOAT))
