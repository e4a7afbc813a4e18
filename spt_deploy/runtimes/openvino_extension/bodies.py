"""An exported model whose functions have our operators for bodies, around the matrix products that stay OpenVINO's.

The file stays as it is: this is done to the model that OpenVINO is given. A function takes and gives what it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from spt_deploy.model.domain import DOMAIN

OPERATORS = "spt.openvino"  # the domain that operators.cpp registers its operators for
LONGEST = 64  # tokens of a container that operators.cpp takes
_PACKINGS = (b"per-image", b"batch")
_ATTRIBUTES = {
    "heads": AttributeProto.INT,
    "window": AttributeProto.INT,
    "tokens": AttributeProto.INT,
    "width": AttributeProto.INT,
    "packing": AttributeProto.STRING,
}


def takes_operators(proto: onnx.ModelProto) -> bool:
    """Whether our operators say what the model's functions do.

    They do not where it packs statically or has larger containers than they take, nor in a file of an earlier version,
    whose operators had other attributes. A model that is inlined has no functions.
    """
    if not any(function.domain == DOMAIN for function in proto.functions):
        return False
    attentions = [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type == "PackedAttention"]
    for node in attentions:
        values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        is_known = values.get("packing") in _PACKINGS and values.get("scale") == 1.0
        if not is_known or values["window"] ** 2 > LONGEST:
            return False
    return bool(attentions)


def with_operators(proto: onnx.ModelProto, bfloat16: bool) -> onnx.ModelProto:
    """The model with our operators.

    Args:
        proto: as it was exported, with its functions; see `takes_operators`.
        bfloat16: whether OpenVINO is to compute in bfloat16, or else float32.

    Returns:
        A copy.
    """
    number = TensorProto.BFLOAT16 if bfloat16 else TensorProto.FLOAT
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    bodies = {
        "SelectTokens": _select_tokens(),
        "PackedQKV": _packed_qkv(number),
        "PackedAttention": _packed_attention(number),
        "UnpackProject": _unpack_project(number),
    }
    del result.functions[:]
    for function in proto.functions:
        if function.domain == DOMAIN and function.name in bodies:
            result.functions.append(_with_body(function, bodies[function.name]))
        elif function.domain != DOMAIN:
            result.functions.append(function)
    result.opset_import.append(helper.make_opsetid(OPERATORS, 1))
    return result


def _with_body(function: FunctionProto, body: Sequence[NodeProto]) -> FunctionProto:
    result = FunctionProto()
    result.CopyFrom(function)
    del result.node[:]
    result.node.extend(body)
    result.opset_import.append(helper.make_opsetid(OPERATORS, 1))
    return result


def _ours(operator: str, inputs: Sequence[str], *results: str) -> NodeProto:
    """A node whose outputs begin with the operator's name, by which a profile knows it (`operator_of`)."""
    return helper.make_node(operator, inputs, [f"{operator}_{result}" for result in results], domain=OPERATORS)


def operator_of(node: str) -> str:
    """The operator of ours behind a node of OpenVINO's, which calls all of them references."""
    return node.split("_")[0]


def _cast(value: str, to: int) -> tuple[str, NodeProto]:
    """The name of a value in another type, and the node that makes it; OpenVINO leaves out one that changes nothing."""
    name = f"{value}_{TensorProto.DataType.Name(to).lower()}"
    return name, helper.make_node("Cast", [value], [name], to=to)


def _select_tokens() -> list[NodeProto]:
    logits, to_logits = _cast("logits", TensorProto.FLOAT)
    order, to_order = _cast("order", TensorProto.INT32)
    threshold, to_threshold = _cast("threshold", TensorProto.FLOAT)
    names = ("token_of_slot", "slot_of_token", "cu_seqlens")
    select = _ours("SelectTokens", [logits, order, threshold], *names)
    casts = [
        helper.make_node("Cast", [found], [name], to=TensorProto.INT64)
        for found, name in zip(select.output, names, strict=True)
    ]
    return [
        to_logits,
        to_order,
        to_threshold,
        select,
        *casts,
    ]


def _packed_qkv(number: int) -> list[NodeProto]:
    h, to_h = _cast("h", number)
    gate, to_gate = _cast("gate", TensorProto.FLOAT)
    slots, to_slots = _cast("token_of_slot", TensorProto.INT32)
    gather = _ours("GatherGated", [h, gate, slots], "rows")
    return [
        to_h,
        to_gate,
        to_slots,
        gather,
        helper.make_node("CastLike", [gather.output[0], "h"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weight", "bias"], ["qkv"], transB=1),
    ]


def _packed_attention(number: int) -> list[NodeProto]:
    qkv, to_qkv = _cast("qkv", number)
    slots, to_slots = _cast("token_of_slot", TensorProto.INT32)
    ends, to_ends = _cast("cu_seqlens", TensorProto.INT32)
    table, to_table = _cast("bias_table", TensorProto.FLOAT)
    attention = _ours("PackedAttention", [qkv, slots, ends, table], "o")
    for name, kind in _ATTRIBUTES.items():
        attention.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    return [
        to_qkv,
        to_slots,
        to_ends,
        to_table,
        attention,
        helper.make_node("CastLike", [attention.output[0], "qkv"], ["o"]),
    ]


def _unpack_project(number: int) -> list[NodeProto]:
    slots, to_slots = _cast("slot_of_token", TensorProto.INT32)
    residual, to_residual = _cast("residual", number)
    branch, to_branch = _cast("projected", number)
    add = _ours("AddScattered", [branch, slots, residual], "x")
    return [
        to_slots,
        to_residual,
        helper.make_node("Gemm", ["o", "weight", "bias"], ["projected"], transB=1),
        to_branch,
        add,
        helper.make_node("CastLike", [add.output[0], "residual"], ["x"]),
    ]
