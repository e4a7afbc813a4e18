"""Scores of every attention are transposed for OpenVINO's bfloat16, the answers stay, other softmaxes are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from spt_deploy.config import BackboneConfig, Packing
from spt_deploy.runtimes.onnx_file import inlined
from spt_export.int8 import to_int8
from tests.exported import make_exported

pytest.importorskip("openvino", reason="an extra")

from openvino import Model
from openvino import opset13 as ops

from spt_deploy.runtimes.openvino_attention import transpose_scores
from spt_deploy.runtimes.openvino_runner import compile_model, openvino_core, options_for, precisions_here

SIZE = (96, 64)  # windows are padded and shifted, and SPA blocks have several containers
BLOCKS = sum(BackboneConfig.from_name("spt_micro").depths)  # dense and SPA ones


def images(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, *SIZE), dtype=np.float32)


@pytest.fixture(scope="module", params=["per-image", "batch", "static"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    packing: Packing = request.param
    made = make_exported(tmp_path_factory.mktemp(packing), SIZE, packing=packing)
    return inlined(onnx.load(made.onnx))


def compiled(model: Any, options: dict[str, object] | None = None) -> Any:
    return openvino_core().compile_model(model, "CPU", options or options_for())


def read(graph: onnx.ModelProto) -> Any:
    return openvino_core().read_model(graph.SerializeToString())


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("in_int8", [False, True])
def test_every_attention_is_transposed_and_the_answers_stay(
    graph: onnx.ModelProto, batch: int | None, in_int8: bool
) -> None:
    proto = to_int8(graph, [images(4)]).model if in_int8 else graph
    plain, changed = read(proto), read(proto)
    if batch is not None:
        for model in (plain, changed):
            model.reshape([batch, 3, *SIZE])
    assert transpose_scores(changed) == BLOCKS
    assert transpose_scores(changed) == 0  # of the last axis, there is none left
    ours, theirs = (compiled(model)(images(3)) for model in (plain, changed))
    if in_int8:  # a value may be rounded to the other of two neighbours, and a token be selected that was not
        np.testing.assert_allclose(theirs["logits"], ours["logits"], atol=0.1)
    else:
        for name in ours:
            np.testing.assert_allclose(theirs[name.get_any_name()], ours[name], atol=2e-5)


def executed(model: Any) -> list[tuple[str, str]]:
    """Kind and precision of every node that runs."""
    infos = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    return [(str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos]


def test_float32_is_left_as_it_is(graph: onnx.ModelProto) -> None:
    products = [kind for kind, _ in executed(compile_model(graph, "the model", options_for("fp32"), 2))]
    assert products.count("MatMul") < BLOCKS


@pytest.mark.skipif("bf16" not in precisions_here(), reason="this processor has no bfloat16")
def test_in_bfloat16_no_product_of_attention_is_in_float32_and_no_layer_leaves_int8(graph: onnx.ModelProto) -> None:
    for proto in (graph, to_int8(graph, [images(4)]).model):
        runs = executed(compile_model(proto, "the model", options_for("bf16"), 2))
        products = [precision for kind, precision in runs if kind == "MatMul"]
        assert len(products) >= 2 * BLOCKS
        assert set(products) == {"bf16"}
        plain = read(proto)
        plain.reshape([2, 3, *SIZE])
        before = executed(compiled(plain, options_for("bf16")))
        assert runs.count(("FullyConnected", "i8")) == before.count(("FullyConnected", "i8"))


@pytest.mark.skipif("bf16" not in precisions_here(), reason="this processor has no bfloat16")
def test_the_rest_of_the_batch_changes_no_bit_in_bfloat16(tmp_path: Path) -> None:
    model = compile_model(onnx.load(make_exported(tmp_path, SIZE).onnx), "the model", options_for("bf16"))
    given = images(4) * np.array([1, 0, 3, 0.1], dtype=np.float32).reshape(-1, 1, 1, 1)
    together = model(given)["logits"]
    for image, expected in zip(given, together, strict=True):
        assert np.array_equal(model(image[None])["logits"][0], expected)


def attention(form: str) -> Any:
    """softmax(q k^T + bias) v of 2 images, 3 heads, 5 queries, 5 keys and 5 channels, in a form of its own."""
    queries, keys, values = (ops.parameter([2, 3, 5, 5], np.float32, name) for name in ("q", "k", "v"))
    bias = ops.constant(np.random.default_rng(0).standard_normal((3, 5, 5), dtype=np.float32))
    by_keys = keys if form == "keys come transposed" else ops.transpose(keys, [0, 1, 3, 2])
    scores = ops.matmul(queries, by_keys, form == "queries transposed", False)
    if form == "bias of keys":
        bias = ops.constant(np.arange(5, dtype=np.float32))
    biased = ops.abs(scores) if form == "no bias" else ops.add(scores, bias)
    weights = ops.softmax(biased, 2 if form == "other axis" else -1)
    if form == "type changed":
        weights = ops.convert(ops.convert(weights, "f16"), "f32")
    result = ops.matmul(weights, values, False, form == "values transposed")
    if form == "another follows":
        again = ops.add(ops.matmul(result, keys, False, True), result)
        result = ops.matmul(ops.softmax(again, -1), values, False, False)
    if form.startswith("rounded"):
        ends = [np.full((5,) if form == "rounded by channel" else (), end, dtype=np.float32) for end in (-2, 2)]
        result = ops.fake_quantize(result, *ends, *ends, 256)
        result = ops.multiply(
            ops.subtract(result, np.float32(0.5)), values if form == "rounded, gated" else np.float32(0.25)
        )
    results = [result] + ([weights] if form == "weights are an answer" else [])
    results += [biased] if form == "scores are an answer" else []
    return Model(results, [queries, keys, values])


@pytest.mark.parametrize(
    ("form", "count"),
    [("plain", 1), ("another follows", 2), ("rounded", 1), ("rounded by channel", 1), ("rounded, gated", 1)],
)
def test_what_follows_an_attention_sees_the_same(form: str, count: int) -> None:
    plain, changed = attention(form), attention(form)
    assert transpose_scores(changed) == count
    assert transpose_scores(changed) == 0
    given = list(np.random.default_rng(1).standard_normal((3, 2, 3, 5, 5), dtype=np.float32))
    np.testing.assert_allclose(compiled(changed)(given)[0], compiled(plain)(given)[0], atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        "keys come transposed",
        "queries transposed",
        "bias of keys",
        "no bias",
        "other axis",
        "type changed",
        "values transposed",
        "weights are an answer",
        "scores are an answer",
    ],
)
def test_another_form_is_left_as_it_is(form: str) -> None:
    model = attention(form)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert transpose_scores(model) == 0
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before
