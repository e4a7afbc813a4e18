"""A file exported with static packing holds no data-dependent shape, and says what the checkpoint says everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, inliner

from spt_deploy.model import static_packing
from spt_deploy.parity.checks import compare_runners
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import TorchRunner
from spt_export.functions import function_protos, opset_imports
from tests.exported import Exported, make_exported

SIZE = (112, 160)  # 70 tokens in stage 3, of which 49 find room; 20 in stage 4, all of which do


@pytest.fixture(scope="module", params=["classify", "detect"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder: Path = tmp_path_factory.mktemp(f"static-{request.param}")
    return make_exported(folder, SIZE, task=request.param, packing="static")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_exported_file_says_what_the_checkpoint_says(made: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="an extra")
    with TorchRunner(made.checkpoint, "cpu", "static") as ours, open_runner(made.onnx, runtime, "cpu") as theirs:
        report = compare_runners(ours, theirs, generated_cases(SIZE))
        assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
        images = np.random.default_rng(0).standard_normal((3, 3, *SIZE), dtype=np.float32)
        expected, found = ours.infer(images), theirs.infer(images)
    assert expected["overflow"].any()
    np.testing.assert_array_equal(found["overflow"], expected["overflow"])
    assert found["overflow"].dtype == np.int64


def test_with_room_for_all_it_says_what_per_image_packing_says(tmp_path: Path) -> None:
    static = make_exported(tmp_path / "static", SIZE, packing="static", capacity=1.0)
    free = make_exported(tmp_path / "free", SIZE)
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)
    with open_runner(static.onnx, "onnxruntime", "cpu") as ours, open_runner(free.onnx, "onnxruntime", "cpu") as theirs:
        found, expected = ours.infer(images), theirs.infer(images)
    assert not found.pop("overflow").any()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


def test_no_shape_depends_on_the_data(made: Exported) -> None:
    model = onnx.load(made.onnx)
    standard = inliner.inline_local_functions(model)
    assert "NonZero" not in {node.op_type for node in standard.graph.node}
    for value in standard.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    inferred = onnx.shape_inference.infer_shapes(standard, strict_mode=True, data_prop=True)
    nodes = [node for node in model.graph.node if node.domain == "spt" and node.op_type == "SelectTokens"]
    slots = [a.i for node in nodes for a in node.attribute if a.name == "slots"]
    assert slots == [49, 49, 49, 49]
    assert inferred.graph.output


def test_indices_are_never_negative_nor_more_than_the_data(made: Exported) -> None:
    """TensorRT-RTX takes neither; ONNX Runtime would."""
    model = inliner.inline_local_functions(onnx.load(made.onnx))
    watched: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        if node.op_type in ("Gather", "ScatterElements"):
            watched[node.name or node.output[0]] = (node.input[0], node.input[1])
    constants = {t.name for t in model.graph.initializer}
    names = sorted({name for pair in watched.values() for name in pair if name not in constants})
    values = _run(model, names)
    values |= {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Gather", "ScatterElements") and node.input[1] in values:
            index = values[node.input[1]]
            if index.dtype.kind == "i" and index.size:
                assert index.min() >= 0, node.output[0]
        if node.op_type == "ScatterElements":
            data = values[node.input[0]]
            assert all(a <= b for a, b in zip(values[node.input[1]].shape, data.shape, strict=True))


def select_tokens_model(tokens: int, slots: int) -> onnx.ModelProto:
    """One ``SelectTokens`` node, inlined, so that every runtime reads it."""
    inputs = {"logits": (TensorProto.FLOAT, ["batch", tokens]), "order": (TensorProto.INT64, [tokens])}
    node = helper.make_node(
        "SelectTokens", [*inputs, "threshold"], ["token_of_slot", "slot_of_token", "cu_seqlens"], domain="spt"
    )
    node.attribute.append(helper.make_attribute("slots", slots))
    graph = helper.make_graph(
        [node],
        "select",
        [
            *(helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()),
            helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=opset_imports(), ir_version=10)
    model.functions.extend(function_protos("static"))
    return inliner.inline_local_functions(model)


def run_everywhere(runtime: str, model: onnx.ModelProto, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    if runtime == "onnxruntime":
        import onnxruntime as ort

        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return list(session.run(None, feed))
    from spt_deploy.runtimes.openvino_runner import compile_model

    found = compile_model(model, "the model")(feed)
    return [found[index] for index in range(3)]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("slots", [1, 20, 49, 69, 70, 98])
def test_of_equal_scores_the_earlier_tokens_find_room_in_every_runtime(runtime: str, slots: int) -> None:
    pytest.importorskip(runtime, reason="an extra")
    random = np.random.default_rng(slots)
    scores = random.standard_normal((12, 70))
    scores[:4] = 2.0  # all equal
    logits = np.round(scores + 1).astype(np.float32)
    logits[4] = -3.0  # nothing
    order = random.permutation(70)
    feed = {"logits": logits, "order": order, "threshold": np.array(0.0, dtype=np.float32)}
    expected = static_packing.select_tokens(*(torch.from_numpy(value) for value in feed.values()), slots)
    found = run_everywhere(runtime, select_tokens_model(70, slots), feed)
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(theirs, ours.numpy())


@pytest.mark.parametrize("slots", [49, 2009, 3920, 4018])
def test_no_ranking_is_longer_than_tensorrt_takes(slots: int) -> None:
    """K is at most 3840 there; 4000 tokens are those of stage 3 at 800x1280."""
    model = select_tokens_model(4000, slots)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "TopK")
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    feed = {
        "logits": np.zeros((1, 4000), dtype=np.float32),
        "order": np.arange(4000),
        "threshold": np.array(0.0, dtype=np.float32),
    }
    pytest.importorskip("onnxruntime", reason="an extra")
    assert int(run_everywhere("onnxruntime", model, feed)[-1].item()) <= 3840


def _run(model: onnx.ModelProto, names: list[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Values of the graph on a batch whose stage 3 overflows."""
    import onnxruntime as ort

    outputs = {output.name for output in model.graph.output}
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v for v in inferred.graph.value_info}
    wanted = [name for name in names if name in types or name in outputs]
    model.graph.output.extend(types[name] for name in wanted if name not in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)
    return dict(zip(wanted, session.run(wanted, {"images": images}), strict=True))
