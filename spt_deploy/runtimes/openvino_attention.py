"""Attention as OpenVINO computes it fastest in bfloat16: scores turned, so that softmax goes down their columns.

Of ``softmax(q k^T + b) v`` OpenVINO makes one kernel, which takes row after row of scores through short loops: for
rows of 49 that is most of the time. The scores of ``k q^T + b^T`` are the same, turned; of them it makes two products
by themselves, and a softmax of sixteen columns at a time. In bfloat16 that is 1.8 times as fast (docs/cpu.md); in
float32, where more bytes lie between, there is no gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openvino import opset13 as ops

CONVERSIONS = frozenset({"Convert", "ConvertLike"})


@dataclass(frozen=True)
class _Attention:
    """``softmax(queries keys^T + bias) values``; all but the last are OpenVINO's outputs, `product` is a node."""

    queries: Any
    keys: Any
    bias: Any
    values: Any
    product: Any


def turn_scores(model: Any) -> int:
    """Turn the scores of every attention of a model, in place; what it computes stays the same.

    Args:
        model: ``openvino.Model``, before it is compiled.

    Returns:
        How many there were. An attention of another form is left as it is: one without a bias, or whose scores are
        used elsewhere, too.
    """
    found = [attention for node in model.get_ordered_ops() if (attention := _attention_of(node)) is not None]
    for each in found:
        scores = ops.add(ops.matmul(each.keys, each.queries, False, True), _turned_bias(each.bias))
        turned = ops.matmul(ops.softmax(scores, -2), each.values, True, False)
        turned.set_friendly_name(each.product.get_friendly_name())
        for user in each.product.output(0).get_target_inputs():
            if user.get_node().get_type_name() == "FakeQuantize":
                _round_apart(turned, user)
            else:
                user.replace_source_output(turned.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _attention_of(softmax: Any) -> _Attention | None:
    """The attention around a node, if it is the softmax of one."""
    if softmax.get_type_name() != "Softmax" or not _is_last_axis(softmax.get_attributes()["axis"], softmax.output(0)):
        return None
    biased = _without_conversions(softmax.input_value(0)).get_node()
    product = _only_product_of(softmax.output(0))
    if biased.get_type_name() != "Add" or product is None or len(biased.output(0).get_target_inputs()) != 1:
        return None
    scores, bias = biased.input_value(0).get_node(), biased.input_value(1)
    if scores.get_type_name() != "MatMul" or scores.get_attributes()["transpose_a"] or _rank(bias) < 2:
        return None
    keys = scores.input_value(1)
    if not scores.get_attributes()["transpose_b"]:
        keys = _before_turn(keys)
    if keys is None or len(scores.output(0).get_target_inputs()) != 1:
        return None
    return _Attention(scores.input_value(0), keys, bias, product.input_value(1), product)


def _only_product_of(weights: Any) -> Any:
    """The MatMul that the weights of an attention go to as they are, if they go nowhere else."""
    users = list(weights.get_target_inputs())
    while len(users) == 1 and _keeps_type(users[0].get_node()):
        users = list(users[0].get_node().output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_index() != 0:
        return None
    node = users[0].get_node()
    return node if node.get_type_name() == "MatMul" and not any(node.get_attributes().values()) else None


def _round_apart(turned: Any, user: Any) -> None:
    """Round a product to integers in a node of its own: one that does it itself computes in float32.

    The rounding and the scaling back, which an int8 file has together, see the product as one dimension.
    """
    user.replace_source_output(ops.reshape(turned, [-1], False).output(0))
    last, scaled = user.get_node(), False
    while not scaled and len(users := last.output(0).get_target_inputs()) == 1:
        (only,) = users
        if only.get_node().get_type_name() not in (*CONVERSIONS, "Multiply"):
            break
        last = only.get_node()
        scaled = last.get_type_name() == "Multiply"
    users = last.output(0).get_target_inputs()
    restored = ops.reshape(last, ops.shape_of(turned), False)
    for each in users:
        each.replace_source_output(restored.output(0))


def _turned_bias(bias: Any) -> Any:
    """The bias with its last two dimensions exchanged, or those of the indices it is gathered by: these are smaller."""
    node = _without_conversions(bias).get_node()
    if node.get_type_name() == "Gather" and _rank(node.input_value(1)) >= 2:
        data, indices, axis = node.input_values()
        if axis.get_node().get_type_name() == "Constant" and _is_last_axis(int(axis.get_node().get_data()), data):
            return ops.gather(data, _turned(indices), axis)
    return _turned(bias)


def _turned(value: Any) -> Any:
    rank = _rank(value)
    return ops.transpose(value, [*range(rank - 2), rank - 1, rank - 2]).output(0)


def _before_turn(value: Any) -> Any:
    """What the last two dimensions of are exchanged, if a Transpose does it; None if none does."""
    node = value.get_node()
    if node.get_type_name() != "Transpose" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    *order, second, last = (int(axis) for axis in node.input_value(1).get_node().get_data())
    return ops.transpose(node.input_value(0), [*order, last, second]).output(0)


def _without_conversions(value: Any) -> Any:
    """What comes before conversions to the type that it has already, as a file in float32 has them around softmax."""
    while _keeps_type(value.get_node()):
        value = value.get_node().input_value(0)
    return value


def _keeps_type(node: Any) -> bool:
    return node.get_type_name() in CONVERSIONS and node.input_value(0).get_element_type() == node.get_element_type()


def _is_last_axis(axis: int, value: Any) -> bool:
    return axis in (-1, _rank(value) - 1)


def _rank(value: Any) -> int:
    """Dimensions of an output; -1 where even that is not known."""
    rank = value.get_partial_shape().rank
    return rank.get_length() if rank.is_static else -1


__all__ = ["turn_scores"]
