"""An exported graph with its selection in view: scores of every SPA block as outputs, masks to force as inputs.

The ``spt`` nodes are still in the file, so this works on any exported model, whatever outputs it was exported with.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from spt_deploy.config import Selector
from spt_deploy.model.operators import DOMAIN

FREE, KEEP, DROP = 0.0, 1.0, -1.0  # values of a forcing input, one a token


class BlockPorts(NamedTuple):
    """Names in the instrumented graph of one SPA block."""

    score: str
    forced: str
    tokens: int


def instrument(proto: onnx.ModelProto, selector: Selector) -> tuple[onnx.ModelProto, list[BlockPorts]]:
    """A copy of the model with ports on every ``SelectTokens`` node.

    Each gets an output ``probe_score_i`` (B x N float32, what is compared with the threshold) and an input
    ``probe_forced_i`` (B x N float32): ``FREE`` leaves the block's own selection, ``KEEP`` and ``DROP`` override it.

    Returns:
        The copy, and the ports in the order of the blocks; no ports when the model has no SPA block.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    tokens = _tokens_of_blocks(proto)
    ports: list[BlockPorts] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == "SelectTokens":
            i = len(ports)
            port = BlockPorts(f"probe_score_{i}", f"probe_forced_{i}", tokens[i])
            score, _, threshold = node.input
            names = {"zero": f"probe_zero_{i}", "free": f"probe_free_{i}", "over": f"probe_over_{i}"}
            nodes += [
                helper.make_node("Identity", [score], [port.score]),
                helper.make_node("Constant", [], [names["zero"]], value_float=FREE),
                helper.make_node("Equal", [port.forced, names["zero"]], [names["free"]]),
                # +-1 must be decided whatever the threshold is, so a forced score is the threshold +-1.
                helper.make_node("Add", [port.forced, threshold], [names["over"]]),
                helper.make_node("Where", [names["free"], score, names["over"]], [f"probe_used_{i}"]),
            ]
            node.input[0] = f"probe_used_{i}"
            shape = ["batch", port.tokens]
            graph.input.append(helper.make_tensor_value_info(port.forced, TensorProto.FLOAT, shape))
            graph.output.append(helper.make_tensor_value_info(port.score, TensorProto.FLOAT, shape))
            ports.append(port)
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    return copy, ports


def _tokens_of_blocks(proto: onnx.ModelProto) -> list[int]:
    """N of each SPA block, which the attention node that follows carries."""
    return [
        attribute.i
        for node in proto.graph.node
        if node.domain == DOMAIN and node.op_type == "PackedAttention"
        for attribute in node.attribute
        if attribute.name == "tokens"
    ]
