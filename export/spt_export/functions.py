"""What each ``spt`` operator means in standard ONNX operators: the functions that travel in every exported file.

A runtime that does not know the operators inlines these; `spt_deploy.model.reference` has the same meaning in
PyTorch, and a test compares them. The bodies serve fp32 and fp16 alike: constants are cast like the data.
Queries come scaled: where a function has attention, the nodes' attribute ``scale`` is 1.
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
from spt_deploy.model.domain import DOMAIN, OPSET_VERSION, PLUGIN_ATTRIBUTES
from spt_export import static_functions as static
from spt_export.masked_bias import FLOAT, INT32, INT64, NO_TOKEN, SPT, MaskedBias, TokenCodes

ONNX_OPSET = 20
LANES = 16  # float32 in the widest vector of a processor


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

    kept = op.Cast(keep, to=INT64)
    kept_so_far = op.CumSum(kept, zero)
    slot = op.Sub(op.Mul(kept_so_far, kept), one)
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
def ContainersPerImage(cu_seqlens, tokens, window):  # noqa: N802
    # Listed for every container there is room for, of which the filled ones are taken. Slots are counted from 1, and 0
    # is a place without one.
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    start, row, every = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
    length = op.Min(op.Mul(window, window), tokens)  # no image fills more
    room = op.Mul(op.Div(op.Sub(op.Add(tokens, length), one), length), length)
    before = op.Slice(cu_seqlens, start, every)
    after = op.Slice(cu_seqlens, row, op.Constant(value_ints=[2147483647]))
    raw = op.Add(op.Unsqueeze(before, row), op.Range(one, op.Add(room, one), one))
    listed = op.Where(op.LessOrEqual(raw, op.Unsqueeze(after, row)), raw, zero)
    containers = op.Reshape(listed, op.Concat(every, op.Reshape(length, row), axis=0))
    filled = op.NonZero(op.Reshape(op.Slice(containers, start, row, row), every))
    # Where an image has one container at most, none is longer than the fullest, by whole vectors: so the order in which
    # a runtime adds does not change with the rest of the batch. It decides which when it loads the file: elsewhere it
    # should know their length.
    lanes = op.Constant(value_int=LANES)
    if op.And(op.Greater(tokens, lanes), op.LessOrEqual(tokens, length)):  # type: ignore[truthy-bool]  # an If node
        fullest = op.ReduceMax(op.Sub(after, before), start, keepdims=1)
        end = op.Mul(op.Div(op.Add(fullest, op.Constant(value_int=LANES - 1)), lanes), lanes)
        shown = op.Slice(containers, start, end, row)
    else:
        shown = op.Identity(containers)
    slots = op.Gather(shown, op.Squeeze(filled, start))
    return slots


@script(SPT)
def ContainersBatch(cu_seqlens, tokens, window):  # noqa: N802
    one = op.Constant(value_int=1)
    start, row, every = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
    length = op.Mul(window, window)
    kept = op.Slice(cu_seqlens, every, op.Constant(value_ints=[2147483647]))
    all_tokens = op.Mul(op.Sub(op.Size(cu_seqlens), one), tokens)
    room = op.Mul(op.Div(op.Sub(op.Add(all_tokens, length), one), length), length)
    raw = op.Range(one, op.Add(room, one), one)
    listed = op.Where(op.LessOrEqual(raw, kept), raw, op.Constant(value_int=0))
    containers = op.Reshape(listed, op.Concat(every, op.Reshape(length, row), axis=0))
    filled = op.NonZero(op.Reshape(op.Slice(containers, start, row, row), every))
    slots = op.Gather(containers, op.Squeeze(filled, start))
    return slots


@script(SPT)
def PackedAttention(  # noqa: N802
    qkv, token_of_slot, cu_seqlens, bias_table, heads: int, window: int, tokens: int, width: int
):
    zero, one, three = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=3)
    every, start = op.Constant(value_ints=[-1]), op.Constant(value_ints=[0])
    slots = ContainersPerImage(cu_seqlens, tokens, window)  # K x L
    places = op.Squeeze(op.NonZero(op.Reshape(slots, every)), start)  # of each slot, for they are listed in order
    codes = op.Gather(TokenCodes(cu_seqlens, tokens, width), token_of_slot)
    no_token = op.Cast(op.Constant(value_ints=[NO_TOKEN]), to=INT32)
    code = op.Gather(op.Concat(no_token, codes, axis=0), slots)
    bias = MaskedBias(code, cu_seqlens, bias_table, qkv, window, tokens, width)

    # Rows 3s - 3, 3s - 2, 3s - 1 of the regrouped matrix are query, key and value of slot s; of a place without one
    # they are the last slot's, whatever that is.
    number_of_heads = op.Constant(value_int=heads)
    head = op.Reshape(number_of_heads, op.Constant(value_ints=[1]))
    channels = op.Div(op.Shape(qkv, start=1), three)
    head_dim = op.Div(channels, number_of_heads)
    grouped = op.Reshape(qkv, op.Concat(every, head, head_dim, axis=0))
    of_query = op.Sub(op.Mul(slots, three), three)
    q = op.Transpose(op.Gather(grouped, of_query), perm=[2, 0, 1, 3])
    k = op.Transpose(op.Gather(grouped, op.Add(of_query, one)), perm=[2, 0, 1, 3])
    v = op.Transpose(op.Gather(grouped, op.Add(of_query, op.Constant(value_int=2))), perm=[2, 0, 1, 3])
    # Queries come scaled. The product takes the second transpose of the keys in; one that does both is slower.
    scores = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), bias)
    weights = op.CastLike(op.Softmax(op.Cast(scores, to=FLOAT), axis=-1), v)
    attended = op.Reshape(op.MatMul(weights, v), op.Concat(every, head_dim, axis=0))
    of_head = op.Mul(op.Range(zero, number_of_heads, one), op.Size(slots))
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
            proto.attribute.extend(("packing", "scale"))
        protos.append(proto)
    return protos


def opset_imports() -> list[onnx.OperatorSetIdProto]:
    """The operator sets of an exported file."""
    return [onnx.helper.make_opsetid("", ONNX_OPSET), onnx.helper.make_opsetid(DOMAIN, OPSET_VERSION)]
