"""An exported graph in 8-bit integers: what is quantised, what is not, and that it says nearly the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spt_deploy.errors import InputError, UsageError
from spt_deploy.facts import THRESHOLD_INPUT
from spt_deploy.image_input import Images
from spt_deploy.runtimes.onnx_file import facts_of, inlined
from spt_export.int8 import Quantized, to_int8, weighted_layers, without_outputs
from tests.exported import make_exported

SIZE = (64, 64)
THRESHOLD = 0.01


def batches(count: int = 2) -> list[npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((2, 3, *SIZE), dtype=np.float32) for _ in range(count)]


def run(model: ModelProto, images: Images, threshold: float = THRESHOLD) -> dict[str, npt.NDArray[np.float32]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    feeds = {"images": images, THRESHOLD_INPUT: np.asarray(threshold, dtype=np.float32)}
    fed = {value.name: feeds[value.name] for value in model.graph.input}
    return dict(zip(names, session.run(names, fed), strict=True))


@pytest.fixture(scope="module")
def with_functions(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    folder = tmp_path_factory.mktemp("classifier")
    return onnx.load(make_exported(folder, SIZE, selection="all", runtime_threshold=True).onnx)


@pytest.fixture(scope="module")
def model(with_functions: ModelProto) -> ModelProto:
    return inlined(with_functions)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    return inlined(onnx.load(make_exported(tmp_path_factory.mktemp("detector"), SIZE, "detect", uint8_input=True).onnx))


@pytest.fixture(scope="module")
def quantized(model: ModelProto) -> Quantized:
    return to_int8(model, batches(), threshold=THRESHOLD)


def makers(model: ModelProto) -> dict[str, NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def test_the_file_is_whole_says_int8_and_answers_nearly_as_before(model: ModelProto, quantized: Quantized) -> None:
    onnx.checker.check_model(quantized.model, full_check=True)
    assert facts_of(quantized.model, "it").precision == "int8"
    assert facts_of(model, "the original").precision == "fp32"
    images = batches()[0]
    ours, theirs = run(model, images)["logits"], run(quantized.model, images)["logits"]
    difference = np.abs(ours - theirs).max()
    assert 0 < difference < 0.1 * np.abs(ours).max()


def test_weights_are_integers_within_half_a_step_of_their_channel(model: ModelProto, quantized: Quantized) -> None:
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.model.graph.initializer}
    made = makers(quantized.model)
    originals = {node.name: node for node in weighted_layers(model)}
    nodes = {node.name: node for node in quantized.model.graph.node}
    for name in quantized.narrow:
        dequantize = made[nodes[name].input[1]]
        integers, scales = (found[value] for value in dequantize.input[:2])
        expected = weights[originals[name].input[1]]
        layer, axis = originals[name], dequantize.attribute[0].i
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
        assert axis == (0 if layer.op_type == "Conv" or is_transposed else 1), "no scale for each output channel"
        others = tuple(i for i in range(expected.ndim) if i != axis)
        steps = np.expand_dims(scales, others)
        assert (np.abs(integers.astype(int)).max(others) == 127).all(), "coarser than need be"
        assert integers.dtype == np.int8
        assert integers.min() >= -127
        assert (np.abs(integers * steps - expected) <= 0.501 * steps).all()
        assert not np.array_equal(integers, np.zeros_like(integers))


def test_gates_the_pixels_and_the_answer_stay_float(model: ModelProto, quantized: Quantized) -> None:
    nodes = {node.name: node for node in quantized.model.graph.node}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers = {node.name: node for node in weighted_layers(model)}
    assert set(quantized.narrow) | set(quantized.wide) == set(layers)
    assert not set(quantized.narrow) & set(quantized.wide)
    gates = [name for name, node in layers.items() if shapes[node.input[1]][1:] == [1]]
    assert gates
    made = makers(quantized.model)
    for name in gates:
        assert "a gate" in quantized.wide[name]
        value = nodes[name].input[0]  # nor is what it sees
        while value in made and made[value].op_type not in ("LayerNormalization", "Add"):
            assert made[value].op_type not in ("QuantizeLinear", "DequantizeLinear")
            value = made[value].input[0]
        assert value in made
    (last,) = [name for name, why in quantized.wide.items() if "answer" in why]
    assert layers[last].op_type == "Gemm"
    (first,) = [name for name, why in quantized.wide.items() if "pixels" in why]
    assert layers[first].op_type == "Conv"
    spa = [name for name in quantized.narrow if layers[name].op_type == "Gemm"]
    assert len(spa) == 2 * len(facts_of(model, "it").model.backbone.spa_blocks)  # qkv and projection of each


def test_what_goes_to_a_layer_is_rounded_before_it_is_moved(quantized: Quantized) -> None:
    made = makers(quantized.model)
    nodes = {node.name: node for node in quantized.model.graph.node}
    through_moves = 0
    for name in quantized.narrow:
        value, moves = nodes[name].input[0], 0
        while made[value].op_type != "DequantizeLinear":
            value, moves = made[value].input[0], moves + 1
        quantize = made[made[value].input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert made[quantize.input[0]].op_type not in ("Reshape", "Gather", "Transpose")
        through_moves += moves > 0
    assert through_moves


def test_the_scale_is_the_largest_magnitude_of_all_batches(model: ModelProto) -> None:
    small = [0.1 * batch for batch in batches(1)]
    both = to_int8(model, [*small, *batches(1)], threshold=THRESHOLD)
    one = to_int8(model, batches(1), threshold=THRESHOLD)
    assert both.images == 4
    for ours, theirs in zip(scales(both.model), scales(one.model), strict=True):
        assert ours >= 0.999 * theirs
    assert max(scales(to_int8(model, small, threshold=THRESHOLD).model)) < max(scales(one.model)) * 1.001


def scales(model: ModelProto) -> list[float]:
    """Of the activations, in order."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    quantize = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return [float(numpy_helper.to_array(weights[node.input[1]])) for node in quantize]


def test_a_selection_of_nothing_is_calibrated_with_and_runs(model: ModelProto) -> None:
    quantized = to_int8(model, batches(1), threshold=0.9999)
    outputs = run(quantized.model, batches(1)[0], threshold=0.9999)
    assert outputs["select_ratio"].max() == 0
    assert np.isfinite(outputs["logits"]).all()


def test_a_detector_s_towers_are_narrow_and_what_it_predicts_with_or_sees_bytes_with_is_not(
    detector: ModelProto,
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    quantized = to_int8(detector, [pictures])
    assert len([name for name, why in quantized.wide.items() if "pixels" in why]) == 1
    layers = {node.name: node for node in weighted_layers(detector)}
    convolutions = [name for name in quantized.narrow if layers[name].op_type == "Conv"]
    assert convolutions
    weights = {layers[name].input[1] for name in convolutions}
    assert not [name for name in weights if "class_conv" in name or "box_conv" in name]
    assert len([name for name, why in quantized.wide.items() if "answer" in why]) == 6  # two of each of three levels
    narrow = run(quantized.model, pictures)["scores"]
    assert np.abs(narrow - run(detector, pictures)["scores"]).max() < 0.05


def test_outputs_go_with_what_only_they_need(model: ModelProto, quantized: Quantized) -> None:
    masks = [output.name for output in quantized.model.graph.output if output.name.startswith("kept_")]
    less = without_outputs(quantized.model, masks)
    assert [output.name for output in less.graph.output] == ["logits", "select_ratio", "selection"]
    bare = without_outputs(quantized.model, [*masks, "select_ratio", "selection"])
    assert len(bare.graph.node) < len(less.graph.node)
    images = batches()[1]
    assert np.array_equal(run(bare, images)["logits"], run(quantized.model, images)["logits"])


def test_what_cannot_be_quantised_is_refused(with_functions: ModelProto, model: ModelProto) -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "g", [value], [value])
    with pytest.raises(UsageError, match="no float32 layer to quantise"):
        to_int8(helper.make_model(graph), batches())
    with pytest.raises(UsageError, match="has functions"):
        to_int8(with_functions, batches())
    with pytest.raises(InputError, match="no image to calibrate with"):
        to_int8(model, [], threshold=THRESHOLD)
    with pytest.raises(UsageError, match="is not finite on these images"):
        to_int8(model, [np.full((1, 3, *SIZE), np.nan, dtype=np.float32)], threshold=THRESHOLD)
