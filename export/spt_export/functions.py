"""What each ``spt`` operator means in standard ONNX operators: the functions that travel in every exported file.

A runtime that does not know the operators inlines these; `spt_deploy.model.reference` has the same meaning in
PyTorch, and a test compares them. The bodies serve fp32 and fp16 alike: constants are cast like the data.
Empty selections are legal everywhere, so no Reshape here infers a dimension of something that may be empty.

`static_functions.py` has those of static packing. onnxscript compiles the bodies from their source, so they hold
tensors and operators only.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import FunctionProto
from onnxscript import OnnxFunction, script
from onnxscript.onnx_opset import opset20 as op

from spt_deploy.config import Packing
from spt_deploy.model.operators import DOMAIN, OPSET_VERSION, PLUGIN_ATTRIBUTES
from spt_export import static_functions as static
from spt_export.masked_bias import FLOAT, INT64, SPT, MaskedBias

ONNX_OPSET = 20


@script(SPT)
def SelectTokens(logits, order, threshold):  # noqa: N802
    keep = op.Greater(op.Gather(logits, order, axis=1), threshold)
    index = op.NonZero(keep)
    image = op.Gather(index, 0, axis=0)
    token = op.Gather(order, op.Gather(index, 1, axis=0))
    token_of_slot = op.Add(op.Mul(image, op.Squeeze(op.Shape(logits, start=1))), token)
    kept = op.Squeeze(op.Shape(token_of_slot))
    nothing = op.Expand(op.Constant(value_int=-1), op.Reshape(op.Size(logits), op.Constant(value_ints=[1])))
    slots = op.ScatterElements(nothing, token_of_slot, op.Range(0, kept, 1), axis=0)
    slot_of_token = op.Reshape(slots, op.Shape(logits))
    counts = op.ReduceSum(op.Cast(keep, to=INT64), op.Constant(value_ints=[1]), keepdims=0)
    cu_seqlens = op.Concat(op.Constant(value_ints=[0]), op.CumSum(counts, 0), axis=0)
    return token_of_slot, slot_of_token, cu_seqlens


@script(SPT)
def PackedQKV(h, gate, token_of_slot, weight, bias):  # noqa: N802
    every_row = op.Concat(op.Constant(value_ints=[-1]), op.Shape(h, start=2), axis=0)
    rows = op.Gather(op.Reshape(h, every_row), token_of_slot, axis=0)
    factor = op.Gather(op.Reshape(gate, op.Constant(value_ints=[-1, 1])), token_of_slot, axis=0)
    qkv = op.Gemm(op.Mul(rows, op.CastLike(factor, rows)), weight, bias, transB=1)
    return qkv


@script(SPT)
def ContainersPerImage(token_of_slot, cu_seqlens, tokens, length):  # noqa: N802
    before = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
    after = op.Slice(cu_seqlens, op.Constant(value_ints=[1]), op.Constant(value_ints=[2147483647]))
    count = op.Div(op.Sub(op.Add(op.Sub(after, before), length), 1), length)
    ends = op.CumSum(count, 0)
    index = op.Range(0, op.Squeeze(op.Gather(ends, op.Constant(value_ints=[-1]))), 1)
    passed = op.GreaterOrEqual(op.Unsqueeze(index, op.Constant(value_ints=[1])), ends)
    image = op.ReduceSum(op.Cast(passed, to=INT64), op.Constant(value_ints=[1]), keepdims=0)
    # Within an image a slot and its place differ by a constant.
    offset = op.Sub(before, op.Mul(op.Sub(ends, count), length))
    first = op.Add(op.Mul(index, length), op.Gather(offset, image))
    raw = op.Add(op.Unsqueeze(first, op.Constant(value_ints=[1])), op.Range(0, length, 1))
    filled = op.Less(raw, op.Unsqueeze(op.Gather(after, image), op.Constant(value_ints=[1])))
    sees = op.Unsqueeze(filled, op.Constant(value_ints=[1]))
    kept = op.Squeeze(op.Shape(token_of_slot))
    slots = op.Min(raw, op.Sub(kept, 1))
    places = op.Sub(op.Range(0, kept, 1), op.Gather(offset, op.Div(token_of_slot, tokens)))
    return slots, sees, places


@script(SPT)
def ContainersBatch(token_of_slot, cu_seqlens, tokens, length):  # noqa: N802
    kept = op.Squeeze(op.Shape(token_of_slot))
    count = op.Div(op.Sub(op.Add(kept, length), 1), length)
    first = op.Unsqueeze(op.Mul(op.Range(0, count, 1), length), op.Constant(value_ints=[1]))
    raw = op.Add(first, op.Range(0, length, 1))
    slots = op.Min(raw, op.Sub(kept, 1))
    image = op.Div(op.Gather(token_of_slot, slots), tokens)
    group = op.Where(op.Less(raw, kept), image, op.Constant(value_int=-1))
    sees = op.Equal(op.Unsqueeze(group, op.Constant(value_ints=[2])), op.Unsqueeze(group, op.Constant(value_ints=[1])))
    places = op.Range(0, kept, 1)
    return slots, sees, places


@script(SPT)
def PackedAttention(  # noqa: N802
    qkv, token_of_slot, cu_seqlens, bias_table, heads: int, window: int, tokens: int, width: int
):
    length = op.Mul(window, window)
    slots, sees, places = ContainersPerImage(token_of_slot, cu_seqlens, tokens, length)

    token = op.Mod(op.Gather(token_of_slot, slots), tokens)
    bias = MaskedBias(token, sees, bias_table, window, width)

    # Rows 3s, 3s + 1, 3s + 2 of the regrouped matrix are query, key and value of slot s.
    channels = op.Div(op.Shape(qkv, start=1), op.Constant(value_ints=[3]))
    head_dim = op.Div(channels, heads)
    grouped = op.Reshape(qkv, op.Concat(op.Mul(op.Shape(qkv, end=1), op.Constant(value_ints=[3])), channels, axis=0))
    by_head = op.Concat(op.Shape(slots), op.Reshape(heads, op.Constant(value_ints=[1])), head_dim, axis=0)
    of_query = op.Mul(slots, 3)
    q = op.Transpose(op.Reshape(op.Gather(grouped, of_query), by_head), perm=[2, 0, 1, 3])
    k = op.Transpose(op.Reshape(op.Gather(grouped, op.Add(of_query, 1)), by_head), perm=[2, 0, 3, 1])
    v = op.Transpose(op.Reshape(op.Gather(grouped, op.Add(of_query, 2)), by_head), perm=[2, 0, 1, 3])
    scale = op.Reciprocal(op.Sqrt(op.Cast(head_dim, to=FLOAT)))
    scores = op.Add(op.MatMul(op.Mul(q, op.CastLike(scale, q)), k), bias)
    weights = op.CastLike(op.Softmax(op.Cast(scores, to=FLOAT), axis=-1), v)
    attended = op.Transpose(op.MatMul(weights, v), perm=[1, 2, 0, 3])
    flat = op.Concat(op.Reshape(op.Size(slots), op.Constant(value_ints=[1])), channels, axis=0)
    o = op.Gather(op.Reshape(attended, flat), places, axis=0)
    return o


@script(SPT)
def UnpackProject(o, token_of_slot, slot_of_token, residual, weight, bias):  # noqa: N802
    projected = op.Gemm(o, weight, bias, transB=1)
    one_row = op.Concat(op.Constant(value_ints=[1]), op.Shape(o, start=1), axis=0)
    nothing = op.Expand(op.CastLike(op.Constant(value_float=0.0), projected), one_row)
    # A dropped token has slot -1, and index -1 takes the last row: zeros.
    branch = op.Gather(op.Concat(projected, nothing, axis=0), slot_of_token, axis=0)
    x = op.Add(residual, op.CastLike(branch, residual))
    return x


def function_protos(packing: Packing) -> list[FunctionProto]:
    """The functions of one file, each under the name of its operator.

    Args:
        packing: how containers are cut; a file holds one way only, and its ``PackedAttention`` nodes say which.
    """
    operators: tuple[OnnxFunction[..., Any], ...]
    helpers: tuple[OnnxFunction[..., Any], ...]
    if packing == "static":
        operators = (static.SelectTokens, static.PackedQKV, static.PackedAttention, static.UnpackProject)
        helpers = (MaskedBias,)
    else:
        operators = (SelectTokens, PackedQKV, PackedAttention, UnpackProject)
        helpers = (ContainersBatch if packing == "batch" else ContainersPerImage, MaskedBias)
    protos: list[FunctionProto] = []
    for function in (*helpers, *operators):
        proto = function.to_function_proto()
        if function in (ContainersBatch, ContainersPerImage):
            proto.name = "Containers"
        for node in proto.node:
            if node.op_type == ContainersPerImage.name:
                node.op_type = "Containers"
        if function in operators:
            proto.attribute.extend(PLUGIN_ATTRIBUTES)
        if proto.name == PackedAttention.name:
            proto.attribute.append("packing")
        protos.append(proto)
    return protos


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """The operator sets of an exported file."""
    return [onnx.helper.make_opsetid("", ONNX_OPSET), onnx.helper.make_opsetid(DOMAIN, OPSET_VERSION)]
