"""The ONNX functions against their meaning in PyTorch, in ONNX Runtime and in OpenVINO, on awkward counts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from spt_deploy.config import DYNAMIC_PACKINGS, PACKINGS, Packing
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


def _weights() -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)

    def values(*shape: int) -> npt.NDArray[np.float32]:
        return (0.2 * random.standard_normal(shape)).astype(np.float32)

    qkv_weight = values(3 * CHANNELS, CHANNELS)
    qkv_weight[:CHANNELS] *= (CHANNELS / HEADS) ** -0.5  # queries come scaled
    return {
        "qkv_weight": qkv_weight,
        "qkv_bias": values(3 * CHANNELS),
        "table": values((2 * WINDOW - 1) ** 2, HEADS),
        "proj_weight": values(CHANNELS, CHANNELS),
        "proj_bias": values(CHANNELS),
    }


@cache
def _chain(packing: Packing, height: int, width: int, shift: int) -> onnx.ModelProto:
    """All four operators in a row, as in an SPA block, with the inner results as outputs."""
    tokens = height * width
    order = window_order(height, width, WINDOW, shift, torch.device("cpu")).numpy()
    sizes: dict[str, Any] = {
        "heads": HEADS,
        "window": WINDOW,
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
    constants = _weights() | {"order": order, "threshold": np.array(THRESHOLD, dtype=np.float32)}
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


def _inputs(counts: tuple[int, ...], tokens: int) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(len(counts))
    logits = np.full((len(counts), tokens), THRESHOLD - 2, dtype=np.float32)
    for image, count in enumerate(counts):
        kept = random.permutation(tokens)[:count]
        logits[image, kept] = random.uniform(THRESHOLD + 1, 3, len(kept))
    return {"h": random.standard_normal((len(counts), tokens, CHANNELS), dtype=np.float32), "logits": logits}


def _expected(
    feeds: dict[str, npt.NDArray[np.float32]], packing: Packing, height: int, width: int, shift: int
) -> dict[str, npt.NDArray[np.generic]]:
    w = {name: torch.from_numpy(value) for name, value in _weights().items()}
    h, logits = torch.from_numpy(feeds["h"]), torch.from_numpy(feeds["logits"])
    order = window_order(height, width, WINDOW, shift, torch.device("cpu"))
    token_of_slot, slot_of_token, cu_seqlens = reference.select_tokens(logits, order, torch.tensor(THRESHOLD))
    qkv = reference.packed_qkv(h, logits.sigmoid(), token_of_slot, w["qkv_weight"], w["qkv_bias"])
    o = reference.packed_attention(
        qkv,
        token_of_slot,
        cu_seqlens,
        w["table"],
        heads=HEADS,
        window=WINDOW,
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


def _assert_same(found: dict[str, Any], expected: dict[str, npt.NDArray[np.generic]]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_functions_mean_the_same_as_the_reference_in_onnx_runtime(
    packing: Packing, height: int, width: int, shift: int
) -> None:
    model = _chain(packing, height, width, shift)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for counts in COUNTS:
        feeds = _inputs(counts, height * width)
        found = dict(zip(names, session.run(None, feeds), strict=True))
        _assert_same(found, _expected(feeds, packing, height, width, shift))


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS[:5])
def test_inlined_functions_mean_the_same_as_the_reference_in_openvino(
    packing: Packing, height: int, width: int, shift: int
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    from spt_deploy.runtimes.openvino_runner import compile_model

    compiled = compile_model(_chain(packing, height, width, shift), "the chain")
    for counts in COUNTS:
        feeds = _inputs(counts, height * width)
        results = compiled(feeds)
        expected = _expected(feeds, packing, height, width, shift)
        _assert_same({name: results[name] for name in expected}, expected)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 4), (14, 14)])
def test_the_rest_of_the_batch_changes_no_bit_of_an_answer_in_openvino(height: int, width: int) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    from spt_deploy.runtimes.openvino_runner import compile_model

    compiled = compile_model(_chain("per-image", height, width, 0), "the chain")
    feeds = _inputs((3, 49, 0, 17, 33), height * width)
    together = compiled(feeds)["x"]
    for image in range(len(together)):
        alone = compiled({name: value[image : image + 1] for name, value in feeds.items()})["x"]
        assert np.array_equal(alone[0], together[image])


def test_every_function_takes_the_attributes_that_name_its_plugin() -> None:
    operators = {"SelectTokens", "PackedQKV", "PackedAttention", "UnpackProject"}
    for packing in PACKINGS:
        functions = {f.name: f for f in function_protos(packing)}
        # The others are called by PackedAttention's body only: no node of a graph, no plugin.
        assert set(functions) - operators == {"MaskedBias", "TokenCodes"} | (
            {"Containers"} if packing != "static" else set()
        )
        for name in operators:
            assert set(PLUGIN_ATTRIBUTES) <= set(functions[name].attribute)


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
def test_fp16_runs_through_the_same_functions(packing: Packing) -> None:
    from onnx import TensorProto

    model = onnx.ModelProto()
    model.CopyFrom(_chain(packing, 7, 7, 0))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name != "threshold":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("h", "qkv", "o", "x"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = _inputs((20, 0, 49), 49)
    half: dict[str, Any] = dict(feeds) | {"h": feeds["h"].astype(np.float16)}
    (found,) = session.run(["x"], half)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, _expected(feeds, packing, 7, 7, 0)["x"], atol=2e-2, rtol=2e-2)
