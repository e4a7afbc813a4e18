"""Attention as OpenVINO computes it fastest in bfloat16: scores transposed, so that softmax goes down their columns.

Of ``softmax(q k^T + b) v`` OpenVINO makes one kernel, which takes row after row of scores through short loops: for
rows of 49 that is most of the time. The scores of ``k q^T + b^T`` are the same, transposed; of them it makes two
products by themselves, and a softmax of sixteen columns at a time. In bfloat16 that is 1.8 times as fast
(docs/cpu.md); in float32, where more bytes lie between, there is no gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spt_deploy.telemetry import no_telemetry

with no_telemetry():
    from openvino import opset13 as ops

CONVERSIONS = frozenset({"Convert", "ConvertLike"})
SCALINGS = frozenset({"Subtract", "Multiply"})


@dataclass(frozen=True)
class _Attention:
    """``softmax(queries keys^T + bias) values``; all but the last are OpenVINO's outputs, `product` is a node."""

    queries: Any
    keys: Any
    bias: Any
    values: Any
    product: Any


def transpose_scores(model: Any) -> int:
    """Transpose the scores of every attention of a model, in place; what it computes stays the same.

    Args:
        model: ``openvino.Model``, before it is compiled.

    Returns:
        How many there were. An attention of another form than ``softmax(q k^T + b) v`` is left as it is: one that has
        no bias or a scale in between, or whose scores or weights are used elsewhere, too.
    """
    count = 0
    for node in model.get_ordered_ops():
        each = _attention_of(node)  # of the model as it is by now: one attention may go into another
        if each is None:
            continue
        scores = ops.add(ops.matmul(each.keys, each.queries, False, True), _transposed_bias(each.bias))
        result = ops.matmul(ops.softmax(scores, -2), each.values, True, False)
        result.set_friendly_name(each.product.get_friendly_name())
        for user in each.product.output(0).get_target_inputs():
            if not _round_apart(result, user):
                user.replace_source_output(result.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _attention_of(softmax: Any) -> _Attention | None:
    """The attention around a node, if it is the softmax of one."""
    if softmax.get_type_name() != "Softmax" or not _is_last_axis(softmax.get_attributes()["axis"], softmax.output(0)):
        return None
    biased = _without_conversions(softmax.input_value(0)).get_node()
    product = _only_product_of(softmax.output(0))
    if biased.get_type_name() != "Add" or product is None or len(biased.output(0).get_target_inputs()) != 1:
        return None
    scores, bias = biased.input_value(0).get_node(), biased.input_value(1)
    if scores.get_type_name() != "MatMul" or scores.get_attributes()["transpose_a"]:
        return None
    queries, keys = scores.input_values()
    if len(scores.output(0).get_target_inputs()) != 1 or min(_rank(each) for each in (queries, keys, bias)) < 2:
        return None
    if not scores.get_attributes()["transpose_b"]:
        keys = _before_transpose(keys)
    return None if keys is None else _Attention(queries, keys, bias, product.input_value(1), product)


def _only_product_of(weights: Any) -> Any:
    """The MatMul that the weights of an attention go to as they are, if they go nowhere else."""
    users = list(weights.get_target_inputs())
    while len(users) == 1 and _keeps_type(users[0].get_node()) and users[0].get_index() == 0:
        users = list(users[0].get_node().output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_index() != 0:
        return None
    node = users[0].get_node()
    return node if node.get_type_name() == "MatMul" and not any(node.get_attributes().values()) else None


def _round_apart(product: Any, user: Any) -> bool:
    """Let a FakeQuantize round a product in a node of its own, for a product that rounds computes in float32.

    Rounding and scaling back, which stay together in an int8 file, see the product as one dimension.

    Returns:
        Whether the user is such a node, with one scale for all of the product.
    """
    last = user.get_node()
    if last.get_type_name() != "FakeQuantize" or not _has_scalars(last):
        return False
    users = last.output(0).get_target_inputs()
    while len(users) == 1:
        (only,) = users
        node = only.get_node()
        is_scaling = node.get_type_name() in SCALINGS and only.get_index() == 0 and _has_scalars(node)
        if node.get_type_name() not in CONVERSIONS and not is_scaling:
            break
        last, users = node, node.output(0).get_target_inputs()
        if node.get_type_name() == "Multiply":
            break
    user.replace_source_output(ops.reshape(product, [-1], False).output(0))
    restored = ops.reshape(last, ops.shape_of(product), False)
    for each in users:
        each.replace_source_output(restored.output(0))
    return True


def _has_scalars(node: Any) -> bool:
    """Whether all inputs but the first have one element."""
    shapes = [value.get_partial_shape() for value in node.input_values()[1:]]
    return all(shape.is_static and shape.rank.get_length() <= 1 and list(shape) in ([], [1]) for shape in shapes)


def _transposed_bias(bias: Any) -> Any:
    """The bias with its last two dimensions exchanged, or those of the indices it is gathered by: these are smaller."""
    node = _without_conversions(bias).get_node()
    if node.get_type_name() == "Gather" and not node.get_attributes()["batch_dims"] and _rank(node.input_value(1)) >= 2:
        data, indices, axis = node.input_values()
        if axis.get_node().get_type_name() == "Constant" and _is_last_axis(axis.get_node().get_data().item(), data):
            return ops.gather(data, _transposed(indices), axis)
    return _transposed(bias)


def _transposed(value: Any) -> Any:
    rank = _rank(value)
    return ops.transpose(value, [*range(rank - 2), rank - 1, rank - 2]).output(0)


def _before_transpose(value: Any) -> Any:
    """The output of a Transpose with its last two dimensions exchanged back; None if it is another node's."""
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
    return axis == -1 or axis == _rank(value) - 1 >= 0


def _rank(value: Any) -> int:
    """Dimensions of an output; 0 where even that is not known."""
    rank = value.get_partial_shape().rank
    return rank.get_length() if rank.is_static else 0


__all__ = ["transpose_scores"]
