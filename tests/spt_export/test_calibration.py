"""Layers that leave float16's range are found on images, and the rewritten graph then says what the original says."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from spt_deploy.errors import InputError
from spt_deploy.runtimes.onnx_file import read_facts
from spt_export.calibration import largest_magnitudes, out_of_range
from spt_export.precision import to_mixed_precision
from tests.exported import make_exported, save_taking_numbers

SCALE = np.float32(6e4)  # itself in range


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """Between the layers of its last MLP values swell past fp16's range, and shrink again: outside nothing shows."""
    proto = onnx.load(make_exported(tmp_path_factory.mktemp("swollen"), (64, 64)).onnx)
    index, gelu = [(i, node) for i, node in enumerate(proto.graph.node) if node.op_type == "Gelu"][-1]
    (layer,) = (node for node in proto.graph.node if gelu.output[0] in node.input)
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == layer.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / SCALE, weight.name))
    proto.graph.initializer.append(numpy_helper.from_array(SCALE, "scale"))
    proto.graph.node.insert(index + 1, onnx.helper.make_node("Mul", [gelu.output[0], "scale"], ["swollen"], "swelling"))
    layer.input[0] = "swollen"
    return proto


def batches() -> list[npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((2, 3, 64, 64), dtype=np.float32) for _ in range(2)]


def logits(proto: ModelProto) -> npt.NDArray[np.float32]:
    """By ONNX's own evaluator: ONNX Runtime on a CPU computes float16 in float32 and would show nothing."""
    evaluator = ReferenceEvaluator(inliner.inline_local_functions(proto))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(evaluator.run(["logits"], {"images": batches()[0]})[0])


def test_a_layer_beyond_the_range_is_found_and_kept_in_float32(model: ModelProto) -> None:
    seen: list[int] = []
    magnitudes = largest_magnitudes(model, batches(), seen.append)
    assert seen == [2, 4]
    found = out_of_range(magnitudes)
    assert found == ["swelling"]
    careless = to_mixed_precision(model, "fp16")
    careful = to_mixed_precision(model, "fp16", out_of_range=found)
    assert careful.wide["swelling"] == "left fp16's range in calibration"
    assert not np.isfinite(logits(careless.model)).all()
    expected = logits(model)
    assert np.abs(logits(careful.model) - expected).max() < 1e-2 * np.abs(expected).max()


def test_magnitudes_are_those_of_the_layers_outputs(model: ModelProto) -> None:
    magnitudes = largest_magnitudes(model, batches())
    copy = ModelProto()
    copy.CopyFrom(model)
    node = next(node for node in copy.graph.node if node.op_type == "PackedQKV")
    copy.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(copy.SerializeToString())
    largest = max(float(np.abs(session.run([node.output[0]], {"images": b})[0]).max()) for b in batches())
    assert magnitudes[node.name] == pytest.approx(largest, rel=1e-6)


def test_a_graph_whose_threshold_is_an_input_is_looked_at_with_the_one_that_is_given(tmp_path: Path) -> None:
    model = onnx.load(make_exported(tmp_path, (64, 64), runtime_threshold=True).onnx)
    some, none = (largest_magnitudes(model, batches()[:1], threshold=threshold) for threshold in (0.002, 0.999))
    packed = [node.name for node in model.graph.node if node.op_type == "PackedQKV"]
    assert all(some[name] > 0 for name in packed)
    assert all(none[name] == 0 for name in packed)


def test_a_graph_that_takes_bytes_is_given_bytes_and_says_the_same(tmp_path: Path) -> None:
    bytes_ = make_exported(tmp_path, (64, 64), uint8_input=True, depths=(1, 1, 1, 1)).onnx
    numbers = save_taking_numbers(bytes_, tmp_path / "numbers.onnx")
    taken, before = (read_facts(path).image_input for path in (bytes_, numbers))
    given = [taken.of(batch) for batch in batches()]
    found = largest_magnitudes(onnx.load(bytes_), given)
    expected = largest_magnitudes(onnx.load(numbers), [before.of(batch) for batch in given])
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_an_image_there_is_nothing_to_say(model: ModelProto) -> None:
    with pytest.raises(InputError, match="no image to calibrate with"):
        largest_magnitudes(model, [])
