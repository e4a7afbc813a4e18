"""All four operators in a row, as in an SPA block, with what they are to answer by the reference in PyTorch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from spt_deploy.config import Packing
from spt_deploy.model import reference
from spt_deploy.model.domain import DOMAIN, PLUGIN_ATTRIBUTES
from spt_deploy.model.order import window_order
from spt_export.functions import function_protos, opset_imports

HEADS, WINDOW, CHANNELS = 2, 7, 64
THRESHOLD = -4.595
# height, width, shift of the map: one container exactly, ragged edges, a single token, less than a window, hardly more
# and no more than a vector holds, a shifted order
MAPS = [(7, 7, 0), (10, 9, 3), (1, 1, 0), (5, 4, 0), (4, 4, 0), (14, 14, 3)]
# tokens kept of each image: nothing at all; nothing in the middle; one; around a vector's and a container's length; all
COUNTS = [(0,), (0, 0, 0), (1, 0, 5), (15, 0), (16,), (17, 1), (48,), (49, 50), (10_000, 3, 10_000)]


def weights(window: int = WINDOW) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)

    def values(*shape: int) -> npt.NDArray[np.float32]:
        return (0.2 * random.standard_normal(shape)).astype(np.float32)

    qkv_weight = values(3 * CHANNELS, CHANNELS)
    qkv_weight[:CHANNELS] *= (CHANNELS / HEADS) ** -0.5  # queries come scaled
    return {
        "qkv_weight": qkv_weight,
        "qkv_bias": values(3 * CHANNELS),
        "table": values((2 * window - 1) ** 2, HEADS),
        "proj_weight": values(CHANNELS, CHANNELS),
        "proj_bias": values(CHANNELS),
    }


@cache
def chain(packing: Packing, height: int, width: int, shift: int, window: int = WINDOW) -> onnx.ModelProto:
    """A model of all four operators, with the inner results as outputs."""
    tokens = height * width
    order = window_order(height, width, window, shift, torch.device("cpu")).numpy()
    sizes: dict[str, Any] = {
        "heads": HEADS,
        "window": window,
        "tokens": tokens,
        "width": width,
        "packing": packing,
        "scale": 1.0,
    }

    def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, outputs, domain=DOMAIN, **PLUGIN_ATTRIBUTES, **attributes)

    nodes = [
        node("SelectTokens", ["logits", "order", "threshold"], ["token_of_slot", "slot_of_token", "cu_seqlens"]),
        helper.make_node("Sigmoid", ["logits"], ["gate"]),
        node("PackedQKV", ["h", "gate", "token_of_slot", "qkv_weight", "qkv_bias"], ["qkv"]),
        node("PackedAttention", ["qkv", "token_of_slot", "cu_seqlens", "table"], ["o"], **sizes),
        node("UnpackProject", ["o", "token_of_slot", "slot_of_token", "h", "proj_weight", "proj_bias"], ["x"]),
    ]
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    info = helper.make_tensor_value_info
    constants = weights(window) | {"order": order, "threshold": np.array(THRESHOLD, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "chain",
        [info("h", float32, ["batch", tokens, CHANNELS]), info("logits", float32, ["batch", tokens])],
        [
            info("token_of_slot", int64, ["kept"]),
            info("slot_of_token", int64, ["batch", tokens]),
            info("cu_seqlens", int64, ["edges"]),
            info("qkv", float32, ["kept", 3 * CHANNELS]),
            info("o", float32, ["kept", CHANNELS]),
            info("x", float32, ["batch", tokens, CHANNELS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=opset_imports(), functions=function_protos(packing), ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs(counts: tuple[int, ...], tokens: int) -> dict[str, npt.NDArray[np.float32]]:
    """Random images that keep so many tokens each, all of them where there are not as many."""
    random = np.random.default_rng(len(counts))
    logits = np.full((len(counts), tokens), THRESHOLD - 2, dtype=np.float32)
    for image, count in enumerate(counts):
        kept = random.permutation(tokens)[:count]
        logits[image, kept] = random.uniform(THRESHOLD + 1, 3, len(kept))
    return {"h": random.standard_normal((len(counts), tokens, CHANNELS), dtype=np.float32), "logits": logits}


def expected(
    feeds: dict[str, npt.NDArray[np.float32]],
    packing: Packing,
    height: int,
    width: int,
    shift: int,
    window: int = WINDOW,
) -> dict[str, npt.NDArray[np.generic]]:
    """What each of the chain's outputs is to be, float32."""
    w = {name: torch.from_numpy(value) for name, value in weights(window).items()}
    h, logits = torch.from_numpy(feeds["h"]), torch.from_numpy(feeds["logits"])
    order = window_order(height, width, window, shift, torch.device("cpu"))
    token_of_slot, slot_of_token, cu_seqlens = reference.select_tokens(logits, order, torch.tensor(THRESHOLD))
    qkv = reference.packed_qkv(h, logits.sigmoid(), token_of_slot, w["qkv_weight"], w["qkv_bias"])
    o = reference.packed_attention(
        qkv,
        token_of_slot,
        cu_seqlens,
        w["table"],
        heads=HEADS,
        window=window,
        tokens=height * width,
        width=width,
        packing=packing,
        scale=1.0,
    )
    x = reference.unpack_project(o, token_of_slot, slot_of_token, h, w["proj_weight"], w["proj_bias"])
    results = {
        "token_of_slot": token_of_slot,
        "slot_of_token": slot_of_token,
        "cu_seqlens": cu_seqlens,
        "qkv": qkv,
        "o": o,
        "x": x,
    }
    return {name: value.numpy() for name, value in results.items()}


def assert_same(found: dict[str, Any], right: dict[str, npt.NDArray[np.generic]], tolerance: float = 1e-5) -> None:
    """Every output, in shape and value."""
    assert set(found) == set(right)
    for name, value in right.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, atol=tolerance, rtol=tolerance, err_msg=name)
