"""What the functions of every packing share: the bias of a container with its mask, and the names of their types."""

from __future__ import annotations

from onnx import TensorProto
from onnxscript import script
from onnxscript import values as onnxscript_values
from onnxscript.onnx_opset import opset20 as op

from spt_deploy.model.operators import DOMAIN, OPSET_VERSION
from spt_deploy.model.reference import MASKED

SPT = onnxscript_values.Opset(DOMAIN, OPSET_VERSION)
FLOAT = TensorProto.FLOAT
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL


@script(SPT)
def MaskedBias(token, sees, bias_table, window, width):  # noqa: N802
    # Relative position bias and mask in one gather: the row after the table's last is the masked one.
    y = op.Cast(op.Div(token, width), to=INT32)
    x = op.Cast(op.Mod(token, width), to=INT32)
    reach = op.Cast(op.Sub(window, 1), to=INT32)
    side = op.Add(op.Add(reach, reach), op.Cast(1, to=INT32))
    dy = op.Sub(op.Unsqueeze(y, op.Constant(value_ints=[2])), op.Unsqueeze(y, op.Constant(value_ints=[1])))
    dx = op.Sub(op.Unsqueeze(x, op.Constant(value_ints=[2])), op.Unsqueeze(x, op.Constant(value_ints=[1])))
    far = op.Neg(reach)
    row = op.Add(op.Mul(op.Add(op.Clip(dy, far, reach), reach), side), op.Add(op.Clip(dx, far, reach), reach))
    masked_row = op.Mul(side, side)
    index = op.Where(sees, row, masked_row)
    masked = op.CastLike(op.Constant(value_float=MASKED), bias_table)
    masked_values = op.Expand(masked, op.Concat(op.Constant(value_ints=[1]), op.Shape(bias_table, start=1), axis=0))
    table = op.Transpose(op.Concat(bias_table, masked_values, axis=0), perm=[1, 0])
    bias = op.Gather(table, index, axis=1)  # heads x K x L x L
    return bias
