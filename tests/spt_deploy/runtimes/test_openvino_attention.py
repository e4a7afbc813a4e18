"""The scores of every attention are turned for OpenVINO's bfloat16, the answers stay, and other softmaxes are left."""

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

from spt_deploy.runtimes.openvino_attention import turn_scores
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
def test_every_attention_is_turned_and_the_answers_stay(graph: onnx.ModelProto, batch: int | None) -> None:
    plain, turned = read(graph), read(graph)
    if batch is not None:
        for model in (plain, turned):
            model.reshape([batch, 3, *SIZE])
    assert turn_scores(turned) == BLOCKS
    assert turn_scores(turned) == 0  # of the last axis, there is none left
    given = images(3)
    for ours, theirs in zip(compiled(plain)(given).values(), compiled(turned)(given).values(), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-5)


@pytest.mark.skipif("bf16" not in precisions_here(), reason="this processor has no bfloat16")
def test_in_bfloat16_no_product_of_attention_is_in_float32(graph: onnx.ModelProto) -> None:
    for model in (graph, to_int8(graph, [images(4)]).model):
        runs = compile_model(model, "the model", options_for("bf16"), 2)
        products = [node.get_rt_info() for node in runs.get_runtime_model().get_ordered_ops()]
        kinds = [str(info["runtimePrecision"].value) for info in products if info["layerType"].value == "MatMul"]
        assert len(kinds) >= 2 * BLOCKS
        assert set(kinds) == {"bf16"}


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
    by_keys = keys if form == "keys come turned" else ops.transpose(keys, [0, 1, 3, 2])
    scores = ops.matmul(queries, by_keys, form == "queries turned", False)
    if form == "bias of keys":
        bias = ops.constant(np.arange(5, dtype=np.float32))
    biased = ops.abs(scores) if form == "no bias" else ops.add(scores, bias)
    weights = ops.softmax(biased, 2 if form == "other axis" else -1)
    if form == "type changed":
        weights = ops.convert(ops.convert(weights, "f16"), "f32")
    result = ops.matmul(weights, values, False, form == "values turned")
    results = [result] + ([weights] if form == "weights are an answer" else [])
    results += [biased] if form == "scores are an answer" else []
    return Model(results, [queries, keys, values])


@pytest.mark.parametrize(
    "form",
    [
        "keys come turned",
        "queries turned",
        "bias of keys",
        "no bias",
        "other axis",
        "type changed",
        "values turned",
        "weights are an answer",
        "scores are an answer",
    ],
)
def test_another_form_is_left_as_it_is(form: str) -> None:
    assert turn_scores(attention("plain")) == 1
    model = attention(form)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert turn_scores(model) == 0
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before
