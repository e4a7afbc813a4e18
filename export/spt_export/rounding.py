"""What a mixed-precision graph computes on a GPU, written in float32 so that any machine can check it.

A CPU runtime that has no 16-bit kernels computes 16-bit nodes in float32 and rounds nothing, so that its answer says
nothing of a GPU's. Here every value that has 16 bits in the mixed graph is float32 again and is rounded to them
explicitly, once, when it is made: products are summed up in float32, as tensor cores do.
"""

from __future__ import annotations

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spt_export.functions import ONNX_OPSET
from spt_export.precision import FLOAT, LARGEST_FP16, MOVING, TYPES, Precision, Rewritten

DOMAIN = "spt_deploy.check"
NAME = "RoundTo16Bits"
_INTERPOLATES = "Resize"  # the one that moves values and makes new ones

# Veltkamp's splitting: with c = (2^s + 1) * x, c - (c - x) is x rounded to 24 - s bits of mantissa.
_SPLIT: dict[Precision, float] = {"fp16": 2.0**13 + 1, "bf16": 2.0**16 + 1}
# From here on a value rounds to infinity; for bfloat16, where the splitting itself would overflow.
_BEYOND: dict[Precision, float] = {"fp16": LARGEST_FP16 + 16, "bf16": 1e33}
_SMALLEST_NORMAL_FP16, _SUBNORMAL_STEPS_FP16 = 2.0**-14, 2.0**24


def rounded_in_float32(rewritten: Rewritten) -> ModelProto:
    """A float32 graph that says what the mixed one says where sums are float32 and values have 16 bits.

    Args:
        rewritten: by `precision.to_mixed_precision`; it is left as it is.
    """
    model = ModelProto()
    model.CopyFrom(rewritten.model)
    narrow_type, narrow_nodes = TYPES[rewritten.precision], set(rewritten.narrow)
    narrow_values: set[str] = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == narrow_type:
            narrow_values.add(tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if to == narrow_type:
            nodes.append(helper.make_node(NAME, node.input, node.output, node.name, domain=DOMAIN))
            narrow_values.update(node.output)
        elif to == FLOAT and node.input[0] in narrow_values:
            nodes.append(helper.make_node("Identity", node.input, node.output, node.name))
        elif node.name in narrow_nodes and (node.op_type not in MOVING or node.op_type == _INTERPOLATES):
            nodes += _rounded(node)
            narrow_values.update(node.output)
        else:
            nodes.append(node)
            if node.name in narrow_nodes:
                narrow_values.update(node.output)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    if any(node.op_type == "PackedAttention" and _has_no_plugin(node) for node in model.graph.node):
        for function in model.functions:
            if function.name == "PackedAttention":
                _round_scores(function)
    model.functions.append(_function(rewritten.precision))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _has_no_plugin(node: NodeProto) -> bool:
    """Whether a GPU computes the function of the node in 16 bits: the plugin of the others keeps scores in float32."""
    return any(attribute.name == "packing" and attribute.s == b"static" for attribute in node.attribute)


def _round_scores(function: FunctionProto) -> None:
    """Round both products of an attention, and the scores with their bias, in place."""
    nodes: list[NodeProto] = []
    products: set[str] = set()
    for node in function.node:
        if node.op_type == "MatMul" or (node.op_type == "Add" and products.intersection(node.input)):
            products.update(node.output)
            nodes += _rounded(node)
        else:
            nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del function.node[:]
    function.node.extend(copies)
    function.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _rounded(node: NodeProto) -> list[NodeProto]:
    """The node, and what it makes rounded under the name that it had."""
    exact = NodeProto()
    exact.CopyFrom(node)
    exact.output[0] = f"{node.output[0]}_exact"
    return [exact, helper.make_node(NAME, exact.output[:1], node.output[:1], f"{node.name}_rounded", domain=DOMAIN)]


def _function(precision: Precision) -> FunctionProto:
    """Round half to even, but for ties of normal numbers, which may go either way."""

    def number(name: str, value: float) -> NodeProto:
        return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, [], [value]))

    body = [
        number("split", _SPLIT[precision]),
        number("beyond", _BEYOND[precision]),
        helper.make_node("Mul", ["x", "split"], ["c"]),
        helper.make_node("Sub", ["c", "x"], ["rest"]),
        helper.make_node("Sub", ["c", "rest"], ["normal"]),
        helper.make_node("Abs", ["x"], ["magnitude"]),
        helper.make_node("Less", ["magnitude", "beyond"], ["is_inside"]),
    ]
    if precision == "bf16":
        body.append(helper.make_node("Where", ["is_inside", "normal", "x"], ["y"]))
    else:
        body += [
            number("smallest_normal", _SMALLEST_NORMAL_FP16),
            number("steps", _SUBNORMAL_STEPS_FP16),
            number("infinity", float("inf")),
            helper.make_node("Mul", ["x", "steps"], ["in_steps"]),
            helper.make_node("Round", ["in_steps"], ["whole_steps"]),
            helper.make_node("Div", ["whole_steps", "steps"], ["subnormal"]),
            helper.make_node("Less", ["magnitude", "smallest_normal"], ["is_subnormal"]),
            helper.make_node("Where", ["is_subnormal", "subnormal", "normal"], ["finite"]),
            helper.make_node("Mul", ["x", "infinity"], ["overflow"]),
            helper.make_node("IsNaN", ["x"], ["is_nan"]),
            helper.make_node("Or", ["is_inside", "is_nan"], ["is_kept"]),
            helper.make_node("Where", ["is_kept", "finite", "overflow"], ["y"]),
        ]
    return helper.make_function(DOMAIN, NAME, ["x"], ["y"], body, [helper.make_opsetid("", ONNX_OPSET)])
