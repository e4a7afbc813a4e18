"""What the functions of every packing share: the bias of a container with its mask, and the names of their types.

A slot has a *code*, one number that says in which image and where its token is, so that the difference of two codes
says which entry of the bias a pair takes, or that it is masked. One subtraction for each pair is all that is computed
there; what the entries are depends on sizes and weights alone, and runtimes compute it when they load the file.
"""

from __future__ import annotations

from onnx import TensorProto
from onnxscript import script
from onnxscript import values as onnxscript_values
from onnxscript.onnx_opset import opset20 as op

from spt_deploy.model.domain import DOMAIN, OPSET_VERSION
from spt_deploy.model.reference import MASKED

SPT = onnxscript_values.Opset(DOMAIN, OPSET_VERSION)
FLOAT = TensorProto.FLOAT
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL
NO_TOKEN = -(2**30)  # the code of a slot without a token: far from every other, and no difference overflows 32 bits


@script(SPT)
def TokenCodes(cu_seqlens, tokens, width):  # noqa: N802
    # Two tokens of an image differ by dy * stride + dx, and by less than half a span; of two images, by more.
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    token = op.Range(zero, tokens, one)
    stride = op.Sub(op.Add(width, width), one)
    height = op.Div(tokens, width)
    span = op.Mul(op.Sub(op.Mul(height, op.Constant(value_int=4)), op.Constant(value_int=2)), stride)
    place = op.Add(op.Mul(op.Div(token, width), stride), op.Mod(token, width))
    image = op.Range(zero, op.Sub(op.Size(cu_seqlens), one), one)
    code = op.Add(op.Mul(op.Unsqueeze(image, op.Constant(value_ints=[1])), span), place)
    codes = op.Cast(op.Reshape(code, op.Constant(value_ints=[-1])), to=INT32)
    return codes


@script(SPT)
def MaskedBias(code, cu_seqlens, bias_table, like, window, tokens, width):  # noqa: N802
    # The bias of every difference within an image, between two entries for the pairs that are masked.
    one = op.Constant(value_int=1)
    reach = op.Sub(window, one)
    far = op.Neg(reach)
    side = op.Add(op.Add(reach, reach), one)
    height = op.Div(tokens, width)
    dy = op.Add(op.Clip(op.Range(op.Sub(one, height), height, one), far, reach), reach)
    dx = op.Add(op.Clip(op.Range(op.Sub(one, width), width, one), far, reach), reach)
    row = op.Add(op.Mul(op.Unsqueeze(dy, op.Constant(value_ints=[1])), side), dx)
    rows = op.Reshape(row, op.Constant(value_ints=[-1]))
    known = op.Gather(op.Transpose(bias_table, perm=[1, 0]), rows, axis=1)

    # Of the type of what is computed, not of the table: of two constants ONNX Runtime warns that it cannot fold them.
    value = op.CastLike(op.Constant(value_float=MASKED), like)
    masked = op.Expand(value, op.Concat(op.Shape(known, end=1), op.Constant(value_ints=[1]), axis=0))

    # The first of cu_seqlens is 0. A runtime does not know that; a table it computed when it loaded the file would stay
    # in float32 in OpenVINO's bfloat16, and each bias be gathered in float32 and converted.
    zero = op.Slice(cu_seqlens, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    table = op.Add(op.Concat(masked, known, masked, axis=1), op.CastLike(zero, known))

    last = op.Cast(op.Add(op.Size(rows), one), to=INT32)
    middle = op.Div(last, op.Cast(op.Constant(value_int=2), to=INT32))
    of_query, of_key = op.Constant(value_ints=[2]), op.Constant(value_ints=[1])
    difference = op.Sub(op.Unsqueeze(code, of_query), op.Unsqueeze(code, of_key))  # K x L x L
    index = op.Clip(op.Add(difference, middle), op.Cast(op.Constant(value_int=0), to=INT32), last)
    bias = op.Gather(table, index, axis=1)  # heads x K x L x L
    return bias
