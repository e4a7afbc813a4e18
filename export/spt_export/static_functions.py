"""The ``spt`` functions under static packing: every shape but the batch is known, and nothing is listed by NonZero.

The meaning is that of `spt_deploy.model.static_packing`. No index is negative and no ScatterElements has more indices
than data along an axis, for TensorRT-RTX takes neither.
"""

from __future__ import annotations

from onnxscript import script
from onnxscript.onnx_opset import opset20 as op

from spt_export.masked_bias import BOOL, FLOAT, INT32, INT64, NO_TOKEN, SPT, MaskedBias, TokenCodes


@script(SPT)
def SelectTokens(logits, order, threshold, slots: int):  # noqa: N802
    one = op.Constant(value_ints=[1])
    minus_one = op.Constant(value_int=-1)
    batch = op.Shape(logits, end=1)
    tokens = op.Shape(logits, start=1)
    room = op.Reshape(slots, one)

    # The lowest score there is room for, counted from the nearer end: TensorRT takes no K above 3840.
    kept_at_most = op.Min(room, tokens)
    from_below = op.Add(op.Sub(tokens, kept_at_most), one)
    sign = op.CastLike(op.Where(op.LessOrEqual(kept_at_most, from_below), one, op.Neg(one)), logits)
    nearer, _ = op.TopK(op.Mul(logits, sign), op.Min(kept_at_most, from_below), axis=1, largest=1, sorted=1)
    last = op.Slice(nearer, op.Constant(value_ints=[-1]), op.Constant(value_ints=[2147483647]), one)
    lowest = op.Mul(last, sign)  # B x 1

    # Which of equal scores TopK lists is each runtime's own affair, so that its indices are not used: the earlier
    # tokens are counted out.
    above = op.Cast(op.Greater(logits, lowest), to=INT64)
    equal = op.Cast(op.Equal(logits, lowest), to=INT64)
    left = op.Sub(kept_at_most, op.ReduceSum(above, one, keepdims=1))
    admitted = op.Mul(equal, op.Cast(op.LessOrEqual(op.CumSum(equal, 1), left), to=INT64))
    keep = op.Mul(op.Add(above, admitted), op.Cast(op.Greater(logits, threshold), to=INT64))
    ordered = op.Gather(keep, order, axis=1)
    kept = op.Cast(ordered, to=BOOL)
    place = op.Sub(op.CumSum(ordered, 1), 1)

    # A place for each slot or token, whichever are more, and one behind them for what is dropped.
    width = op.Max(room, tokens)
    empty = op.Expand(minus_one, op.Concat(batch, op.Add(width, one), axis=0))
    image = op.Unsqueeze(op.Range(0, op.Squeeze(batch), 1), one)
    token = op.Add(op.Mul(image, tokens), order)
    filled = op.ScatterElements(empty, op.Where(kept, place, width), token, axis=1)
    token_of_slot = op.Reshape(op.Slice(filled, op.Constant(value_ints=[0]), room, one), op.Constant(value_ints=[-1]))

    of_place = op.Where(kept, op.Add(op.Mul(image, slots), place), minus_one)
    every = op.Range(0, op.Squeeze(tokens), 1)
    place_of_token = op.ScatterElements(every, order, every, axis=0)  # the inverse of the order
    slot_of_token = op.Gather(of_place, place_of_token, axis=1)
    counts = op.ReduceSum(ordered, one, keepdims=0)
    cu_seqlens = op.Concat(op.Constant(value_ints=[0]), op.CumSum(counts, 0), axis=0)
    return token_of_slot, slot_of_token, cu_seqlens


@script(SPT)
def PackedQKV(h, gate, token_of_slot, weight, bias):  # noqa: N802
    token = op.Max(token_of_slot, op.Constant(value_int=0))
    every_row = op.Concat(op.Constant(value_ints=[-1]), op.Shape(h, start=2), axis=0)
    rows = op.Gather(op.Reshape(h, every_row), token, axis=0)
    factor = op.Gather(op.Reshape(gate, op.Constant(value_ints=[-1, 1])), token, axis=0)
    qkv = op.Gemm(op.Mul(rows, op.CastLike(factor, rows)), weight, bias, transB=1)
    return qkv


@script(SPT)
def PackedAttention(  # noqa: N802
    qkv, token_of_slot, cu_seqlens, bias_table, heads: int, window: int, tokens: int, width: int
):
    length = op.Reshape(op.Mul(window, window), op.Constant(value_ints=[1]))
    containers = op.Reshape(token_of_slot, op.Concat(op.Constant(value_ints=[-1]), length, axis=0))
    filled = op.GreaterOrEqual(containers, op.Constant(value_int=0))
    codes = op.Gather(TokenCodes(cu_seqlens, tokens, width), op.Max(containers, op.Constant(value_int=0)))
    code = op.Where(filled, codes, op.Cast(op.Constant(value_int=NO_TOKEN), to=INT32))
    bias = MaskedBias(code, cu_seqlens, bias_table, qkv, window, tokens, width)

    channels = op.Div(op.Shape(qkv, start=1), op.Constant(value_ints=[3]))
    number_of_heads = op.Constant(value_int=heads)
    head = op.Reshape(number_of_heads, op.Constant(value_ints=[1]))
    head_dim = op.Div(channels, number_of_heads)
    split = op.Concat(op.Constant(value_ints=[-1]), length, op.Constant(value_ints=[3]), head, head_dim, axis=0)
    grouped = op.Reshape(qkv, split)
    q = op.Transpose(op.Gather(grouped, op.Constant(value_int=0), axis=2), perm=[2, 0, 1, 3])
    k = op.Transpose(op.Gather(grouped, op.Constant(value_int=1), axis=2), perm=[2, 0, 3, 1])
    v = op.Transpose(op.Gather(grouped, op.Constant(value_int=2), axis=2), perm=[2, 0, 1, 3])
    scores = op.Add(op.MatMul(q, k), bias)
    weights = op.CastLike(op.Softmax(op.Cast(scores, to=FLOAT), axis=-1), v)
    attended = op.Transpose(op.MatMul(weights, v), perm=[1, 2, 0, 3])
    o = op.Reshape(attended, op.Concat(op.Constant(value_ints=[-1]), channels, axis=0))
    return o


@script(SPT)
def UnpackProject(o, token_of_slot, slot_of_token, residual, weight, bias):  # noqa: N802
    projected = op.Gemm(o, weight, bias, transB=1)
    kept = op.GreaterOrEqual(slot_of_token, op.Constant(value_int=0))
    rows = op.Gather(projected, op.Max(slot_of_token, op.Constant(value_int=0)), axis=0)
    nothing = op.CastLike(op.Constant(value_float=0.0), rows)
    branch = op.Where(op.Unsqueeze(kept, op.Constant(value_ints=[2])), rows, nothing)
    x = op.Add(residual, op.CastLike(branch, residual))
    return x
