"""The float32 form of a mixed-precision graph rounds as the types do, wherever the mixed graph has 16 bits."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, inliner
from onnx.reference import ReferenceEvaluator

from spt_deploy.config import Packing
from spt_deploy.parity.instrument import KEEP, instrument
from spt_export.functions import ONNX_OPSET
from spt_export.precision import Precision, to_mixed_precision
from spt_export.rounding import DOMAIN, NAME, rounded_in_float32
from tests.exported import make_exported

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return onnx.load(make_exported(tmp_path_factory.mktemp("rounding"), (64, 96)).onnx)


def run(model: onnx.ModelProto, feeds: dict[str, npt.NDArray[np.float32]], name: str) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], feeds)[0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_value_is_rounded_as_the_type_rounds_it(model: onnx.ModelProto, precision: Precision) -> None:
    function = rounded_in_float32(to_mixed_precision(model, precision)).functions[-1]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node(NAME, ["x"], ["y"], domain=DOMAIN)], "round", [value], [result])
    opsets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(DOMAIN, 1)]
    alone = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    random = np.random.default_rng(0)
    # Every size from below the smallest subnormal to beyond the largest number.
    x = (random.standard_normal(100_000) * 2.0 ** random.integers(-27, 18, 100_000)).astype(np.float32)
    x = np.concatenate([x, np.array([0.0, -0.0, 65504, 65519, 65521, -1e6, 1e-8, np.inf, -np.inf], np.float32)])
    with np.errstate(over="ignore"):
        expected = x.astype(DTYPES[precision]).astype(np.float32)
    found = run(alone, {"x": x}, "y")
    np.testing.assert_allclose(found, expected, rtol=0, atol=0, equal_nan=False)
    assert np.isnan(run(alone, {"x": np.array([np.nan], np.float32)}, "y")).all()


def forced(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    _, ports = instrument(model, "threshold")
    random = np.random.default_rng(0)
    masks = {p.forced: np.where(random.random((len(images), p.tokens)) < 0.4, KEEP, -KEEP) for p in ports}
    return {"images": images} | {name: mask.astype(np.float32) for name, mask in masks.items()}


def test_it_says_what_the_mixed_graph_says_where_16_bit_kernels_run(model: onnx.ModelProto) -> None:
    """ONNX's own evaluator computes in the types of the graph."""
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 96), dtype=np.float32)
    mixed = to_mixed_precision(model, "fp16")
    feeds = forced(model, images)
    graph = inliner.inline_local_functions(instrument(mixed.model, "threshold")[0])
    in_16_bits = np.asarray(ReferenceEvaluator(graph).run(["logits"], feeds)[0])
    rounded = run(instrument(rounded_in_float32(mixed), "threshold")[0], feeds, "logits")
    exact = run(instrument(model, "threshold")[0], feeds, "logits")
    error = np.abs(rounded - exact).max()
    assert 0 < error < 1e-2 * np.abs(exact).max()
    assert np.abs(in_16_bits - exact).max() / 4 < error < np.abs(in_16_bits - exact).max() * 2


def test_overflow_is_infinite_as_on_a_gpu(model: onnx.ModelProto) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(model)
    product = next(node for node in large.graph.node if node.op_type == "MatMul")
    weight = next(t for t in large.graph.initializer if t.name == product.input[1])
    array = onnx.numpy_helper.to_array(weight) * 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(np.clip(array, -6e4, 6e4).astype(np.float32), weight.name))
    images = np.random.default_rng(1).standard_normal((1, 3, 64, 96), dtype=np.float32)
    mixed = to_mixed_precision(large, "fp16")
    assert np.isfinite(run(large, {"images": images}, "logits")).all()
    assert not np.isfinite(run(rounded_in_float32(mixed), {"images": images}, "logits")).all()


@pytest.mark.parametrize(("packing", "is_finite"), [("static", False), ("per-image", True)])
def test_scores_overflow_where_no_plugin_keeps_them_in_float32(
    packing: Packing, is_finite: bool, tmp_path: Path
) -> None:
    path = make_exported(tmp_path, (64, 96), packing=packing).onnx
    large = onnx.load(path)
    weights = {node.input[3] for node in large.graph.node if node.op_type == "PackedQKV"}
    for weight in (tensor for tensor in large.graph.initializer if tensor.name in weights):
        array = onnx.numpy_helper.to_array(weight).copy()
        array[: len(array) // 3 * 2] *= 6000  # queries and keys stay in fp16's range, their products do not
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    images = np.random.default_rng(1).standard_normal((1, 3, 64, 96), dtype=np.float32)
    assert np.isfinite(run(large, {"images": images}, "logits")).all()
    rounded = rounded_in_float32(to_mixed_precision(large, "fp16"))
    assert np.isfinite(run(rounded, {"images": images}, "logits")).all() == is_finite
