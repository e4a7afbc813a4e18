"""What each ``spt`` operator means in standard ONNX operators: the functions that travel in every exported file.

A runtime that does not know the operators inlines these; `spt_deploy.model.reference` has the same meaning in
PyTorch, and a test compares them. The bodies serve fp32 and fp16 alike: constants are cast like the data.
Empty selections are legal everywhere: a Reshape infers the dimension that may be 0, and no other.

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
from spt_export.masked_bias import FLOAT, INT32, INT64, NO_TOKEN, SPT, MaskedBias, TokenCodes

ONNX_OPSET = 20


@script(SPT)
def SelectTokens(logits, order, threshold):  # noqa: N802
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    flat, first = op.Constant(value_ints=[-1]), op.Constant(value_ints=[0])
    shape = op.Shape(logits)
    batch = op.Squeeze(op.Shape(logits, end=1))
    tokens = op.Squeeze(op.Shape(logits, start=1))
    keep = op.Reshape(op.Greater(op.Gather(logits, order, axis=1), threshold), flat)
    image = op.Unsqueeze(op.Range(zero, batch, one), op.Constant(value_ints=[1]))
    token = op.Reshape(op.Add(op.Mul(image, tokens), order), flat)
    token_of_slot = op.Gather(token, op.Squeeze(op.NonZero(keep), first))

    kept_so_far = op.CumSum(op.Cast(keep, to=INT64), zero)
    slot = op.Where(keep, op.Sub(kept_so_far, one), op.Constant(value_int=-1))
    every = op.Range(zero, tokens, one)
    place_of_token = op.ScatterElements(every, order, every, axis=0)  # the inverse of the order
    slot_of_token = op.Gather(op.Reshape(slot, shape), place_of_token, axis=1)
    ends = op.Gather(op.Reshape(kept_so_far, shape), op.Sub(tokens, one), axis=1)
    cu_seqlens = op.Concat(first, ends, axis=0)
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
    # Listed for every container there is room for, of which the filled ones are taken.
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    start, row, every = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
    before = op.Slice(cu_seqlens, start, every)
    after = op.Slice(cu_seqlens, row, op.Constant(value_ints=[2147483647]))
    most = op.Div(op.Sub(op.Add(tokens, length), one), length)
    first = op.Add(op.Unsqueeze(before, row), op.Mul(op.Range(zero, most, one), length))
    filled = op.Reshape(op.Less(first, op.Unsqueeze(after, row)), every)
    raw = op.Add(op.Unsqueeze(first, op.Constant(value_ints=[2])), op.Range(zero, length, one))
    listed = op.Where(op.Less(raw, op.Unsqueeze(after, op.Constant(value_ints=[1, 2]))), raw, op.Constant(value_int=-1))
    by_container = op.Concat(every, op.Reshape(length, row), axis=0)
    slots = op.Gather(op.Reshape(listed, by_container), op.Squeeze(op.NonZero(filled), start))

    # Within an image a slot and its place differ by a constant.
    count = op.Div(op.Sub(op.Add(op.Sub(after, before), length), one), length)
    ends = op.CumSum(count, zero)
    shift = op.Sub(op.Mul(op.Sub(ends, count), length), before)
    of_token = op.Expand(op.Unsqueeze(shift, row), op.Concat(row, op.Reshape(tokens, row), axis=0))
    slot = op.CumSum(op.Clip(token_of_slot, one, one), zero, exclusive=1)
    places = op.Add(slot, op.Gather(op.Reshape(of_token, every), token_of_slot))
    room = op.Mul(op.Gather(ends, every), length)
    return slots, places, room


@script(SPT)
def ContainersBatch(token_of_slot, cu_seqlens, tokens, length):  # noqa: N802
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    kept = op.Slice(cu_seqlens, op.Constant(value_ints=[-1]), op.Constant(value_ints=[2147483647]))
    all_tokens = op.Mul(op.Sub(op.Size(cu_seqlens), one), tokens)
    most = op.Div(op.Sub(op.Add(all_tokens, length), one), length)
    first = op.Mul(op.Range(zero, most, one), length)
    raw = op.Add(op.Unsqueeze(first, op.Constant(value_ints=[1])), op.Range(zero, length, one))
    listed = op.Where(op.Less(raw, kept), raw, op.Constant(value_int=-1))
    slots = op.Gather(listed, op.Squeeze(op.NonZero(op.Less(first, kept)), op.Constant(value_ints=[0])))
    places = op.CumSum(op.Clip(token_of_slot, one, one), zero, exclusive=1)
    room = op.Mul(op.Div(op.Sub(op.Add(kept, length), one), length), length)
    return slots, places, room


@script(SPT)
def PackedAttention(  # noqa: N802
    qkv, token_of_slot, cu_seqlens, bias_table, heads: int, window: int, tokens: int, width: int
):
    length = op.Mul(window, window)
    zero, one, three = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=3)
    # K x L: a place without a token has slot -1, and index -1 takes the last row, whatever that is.
    slots, places, room = ContainersPerImage(token_of_slot, cu_seqlens, tokens, length)
    codes = op.Gather(TokenCodes(cu_seqlens, tokens, width), token_of_slot)
    no_token = op.Cast(op.Constant(value_ints=[NO_TOKEN]), to=INT32)
    code = op.Gather(op.Concat(codes, no_token, axis=0), slots)
    bias = MaskedBias(code, cu_seqlens, bias_table, window, tokens, width)

    # Rows 3s, 3s + 1, 3s + 2 of the regrouped matrix are query, key and value of slot s.
    every = op.Constant(value_ints=[-1])
    head = op.Reshape(heads, op.Constant(value_ints=[1]))
    channels = op.Div(op.Shape(qkv, start=1), three)
    head_dim = op.Div(channels, heads)
    grouped = op.Reshape(qkv, op.Concat(every, head, head_dim, axis=0))
    of_query = op.Mul(slots, three)
    q = op.Transpose(op.Gather(grouped, of_query), perm=[2, 0, 1, 3])
    k = op.Transpose(op.Gather(grouped, op.Add(of_query, one)), perm=[2, 0, 1, 3])
    v = op.Transpose(op.Gather(grouped, op.Add(of_query, op.Constant(value_int=2))), perm=[2, 0, 1, 3])
    # Scaled between two transposes, the second of which the product takes in; one that does both is slower.
    scale = op.Reciprocal(op.Sqrt(op.Cast(head_dim, to=FLOAT)))
    scores = op.Add(op.MatMul(q, op.Transpose(op.Mul(k, op.CastLike(scale, k)), perm=[0, 1, 3, 2])), bias)
    weights = op.CastLike(op.Softmax(op.Cast(scores, to=FLOAT), axis=-1), v)
    attended = op.Reshape(op.MatMul(weights, v), op.Concat(every, head_dim, axis=0))
    of_head = op.Mul(op.Range(zero, heads, one), room)
    at = op.Add(op.Unsqueeze(places, op.Constant(value_ints=[1])), of_head)
    o = op.Reshape(op.Gather(attended, at), op.Concat(every, channels, axis=0))
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
        helpers = (MaskedBias, TokenCodes)
    else:
        operators = (SelectTokens, PackedQKV, PackedAttention, UnpackProject)
        helpers = (ContainersBatch if packing == "batch" else ContainersPerImage, MaskedBias, TokenCodes)
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
