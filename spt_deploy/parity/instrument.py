"""An exported graph with its selection in view: scores of every SPA block as outputs, masks to force as inputs.

The ``spt`` nodes are still in the file, so this works on any exported model, whatever outputs it was exported with.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from spt_deploy.config import Selector
from spt_deploy.model.domain import DOMAIN

FREE, KEEP, DROP = 0.0, 1.0, -1.0  # values of a forcing input, one a token


class BlockPorts(NamedTuple):
    """Names in the instrumented graph of one SPA block."""

    score: str
    forced: str
    tokens: int


def instrument(proto: onnx.ModelProto, selector: Selector) -> tuple[onnx.ModelProto, list[BlockPorts]]:
    """A copy of the model with ports on every ``SelectTokens`` node.

    Each gets an output ``probe_score_i`` (B x N float32: the logits that a threshold is compared with, or that a
    ranking orders) and an input ``probe_forced_i`` (B x N float32): ``FREE`` leaves the
    block's own selection, ``KEEP`` and ``DROP`` override it.

    Returns:
        The copy, and the ports in the order of the blocks; no ports when the model has no SPA block.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    blocks = _blocks(proto)
    ports: list[BlockPorts] = []
    nodes: list[onnx.NodeProto] = []
    probes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == "SelectTokens":
            i = len(ports)
            gate, tokens = blocks[i]
            port = BlockPorts(f"probe_score_{i}", f"probe_forced_{i}", tokens)
            score, _, threshold = node.input
            names = {"zero": f"probe_zero_{i}", "free": f"probe_free_{i}", "over": f"probe_over_{i}"}
            nodes += [
                helper.make_node("Constant", [], [names["zero"]], value_float=FREE),
                helper.make_node("Equal", [port.forced, names["zero"]], [names["free"]]),
                # +-1 must be decided whatever the threshold is, so a forced score is the threshold +-1.
                helper.make_node("Add", [port.forced, threshold], [names["over"]]),
                helper.make_node("Where", [names["free"], score, names["over"]], [f"probe_used_{i}"]),
            ]
            node.input[0] = f"probe_used_{i}"
            shape: list[str | int | None] = ["batch", port.tokens]
            graph.input.append(helper.make_tensor_value_info(port.forced, TensorProto.FLOAT, shape))
            graph.output.append(helper.make_tensor_value_info(port.score, TensorProto.FLOAT, shape))
            ports.append(port)
            # At the end of the graph: the gate may be computed after the selection.
            seen = _before_sigmoid(graph, gate) if selector == "topk" else score
            probes.append(helper.make_node("Identity", [seen], [port.score]))
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*nodes, *probes)]
    del graph.node[:]
    graph.node.extend(ordered)
    return copy, ports


def _before_sigmoid(graph: onnx.GraphProto, gate: str) -> str:
    """The logits that a gate was made of; a ranking's own input of ``SelectTokens`` is only +-1."""
    made_by = {output: node for node in graph.node for output in node.output}
    while made_by[gate].op_type != "Sigmoid":  # what a rewritten precision put behind it
        gate = made_by[gate].input[0]
    return str(made_by[gate].input[0])


def _blocks(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    """Of each SPA block in order: the name of its gate, and N."""
    ours = [node for node in proto.graph.node if node.domain == DOMAIN]
    gates = [node.input[1] for node in ours if node.op_type == "PackedQKV"]
    tokens = [
        attribute.i
        for node in ours
        if node.op_type == "PackedAttention"
        for attribute in node.attribute
        if attribute.name == "tokens"
    ]
    return list(zip(gates, tokens, strict=True))
