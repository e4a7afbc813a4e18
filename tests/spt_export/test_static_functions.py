"""A file exported with static packing holds no data-dependent shape, and says what the checkpoint says everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import inliner

from spt_deploy.parity.checks import compare_runners
from spt_deploy.parity.inputs import generated_cases
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import TorchRunner
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
