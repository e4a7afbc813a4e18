"""Mixed precision: the heavy work is narrow, what needs its digits is not, and the answer is the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from spt_deploy.errors import UsageError
from spt_deploy.parity.instrument import KEEP, instrument
from spt_deploy.runtimes.onnx_file import facts_of
from spt_export.precision import HEAVY, LARGEST_FP16, TYPES, Precision, to_mixed_precision
from tests.exported import make_exported

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    return onnx.load(make_exported(tmp_path_factory.mktemp("classify"), (64, 96)).onnx)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    return onnx.load(make_exported(tmp_path_factory.mktemp("detect"), (64, 96), task="detect").onnx)


@pytest.fixture(params=["classify", "detect"])
def model(request: pytest.FixtureRequest, classifier: ModelProto, detector: ModelProto) -> ModelProto:
    return classifier if request.param == "classify" else detector


def types_of(model: ModelProto) -> dict[str, int]:
    """Element type of every value, by ONNX's own inference, functions inlined."""
    inferred = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model), strict_mode=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def inputs_of(node: NodeProto, types: dict[str, int]) -> set[int]:
    return {types[name] for name in node.input if types.get(name) in FLOATS}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_heavy_nodes_are_narrow_but_for_gates_and_norms_and_softmax_are_not(
    model: ModelProto, precision: Precision
) -> None:
    result = to_mixed_precision(model, precision)
    onnx.checker.check_model(result.model, full_check=True)
    types = types_of(result.model)
    narrow, wide = TYPES[precision], TensorProto.FLOAT
    gates = 0
    for node in result.model.graph.node:
        if node.op_type in ("LayerNormalization", "InstanceNormalization", "Softmax", "Sigmoid", "TopK", "MaxPool"):
            assert inputs_of(node, types) <= {wide}, node.name
        elif node.op_type == "SelectTokens":
            assert types[node.input[0]] == types[node.input[2]] == wide
        elif node.op_type == "PackedQKV":
            assert [types[node.input[i]] for i in (0, 1, 3, 4)] == [narrow, wide, narrow, narrow]
        elif node.op_type in HEAVY:
            assert inputs_of(node, types) == {narrow}, node.name
        elif node.input[1:] and node.input[1].endswith("_row"):  # a gate, as a product and a sum
            gates += 1
            assert result.wide[node.name] == "gate or score"
            assert inputs_of(node, types) == {wide}
    assert gates == 5  # of the four SPA blocks, and the one before stage 3


def test_inputs_and_outputs_keep_their_names_and_types_and_functions_survive(model: ModelProto) -> None:
    result = to_mixed_precision(model, "fp16").model
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert list(result.functions) == list(model.functions)
    before, after = (facts_of(each, "the model") for each in (model, result))
    assert after == replace(before, precision="fp16")
    assert before.precision == "fp32"
    custom = [node.op_type for node in result.graph.node if node.domain == "spt"]
    assert custom == [node.op_type for node in model.graph.node if node.domain == "spt"]


def forced_logits(model: ModelProto, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """On the same selection, by ONNX's own evaluator: ONNX Runtime on a CPU computes float16 in float32."""
    copy, ports = instrument(model, "threshold")
    random = np.random.default_rng(0)
    masks = {p.forced: np.where(random.random((len(images), p.tokens)) < 0.4, KEEP, -KEEP) for p in ports}
    feeds = {"images": images} | {name: mask.astype(np.float32) for name, mask in masks.items()}
    return np.asarray(ReferenceEvaluator(inliner.inline_local_functions(copy)).run(["logits"], feeds)[0])


def test_a_classifier_in_fp16_says_what_it_says_in_fp32_on_the_same_selection(classifier: ModelProto) -> None:
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 96), dtype=np.float32)
    expected = forced_logits(classifier, images)
    found = forced_logits(to_mixed_precision(classifier, "fp16").model, images)
    assert 0 < np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


def test_the_rewritten_file_runs_in_onnx_runtime(model: ModelProto) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of constants it cannot fold
    images = np.random.default_rng(1).standard_normal((3, 3, 64, 96), dtype=np.float32)
    session = ort.InferenceSession(to_mixed_precision(model, "fp16").model.SerializeToString(), options)
    for value, array in zip(session.get_outputs(), session.run(None, {"images": images}), strict=True):
        assert len(array) == 3
        assert np.isfinite(array).all(), value.name


def test_rewriting_leaves_the_original_alone(classifier: ModelProto) -> None:
    before = classifier.SerializeToString()
    to_mixed_precision(classifier, "fp16")
    assert classifier.SerializeToString() == before


def test_a_pattern_keeps_the_layers_whose_node_or_weight_it_fits(classifier: ModelProto) -> None:
    result = to_mixed_precision(classifier, "fp16", keep_fp32=["model.head.*"])
    (head,) = (node for node in result.model.graph.node if node.op_type == "Gemm")
    assert head.name not in result.narrow
    assert result.wide[head.name] == "--keep-fp32 model.head.*"
    with pytest.raises(UsageError, match=r"--keep-fp32 nothing\* fits no layer"):
        to_mixed_precision(classifier, "fp16", keep_fp32=["nothing*"])


def test_nodes_out_of_range_and_weights_beyond_fp16_stay_wide(classifier: ModelProto) -> None:
    (head,) = (node for node in classifier.graph.node if node.op_type == "Gemm")
    result = to_mixed_precision(classifier, "fp16", out_of_range=[head.name])
    assert head.name not in result.narrow
    large = ModelProto()
    large.CopyFrom(classifier)
    (weight,) = (tensor for tensor in large.graph.initializer if tensor.name == head.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(2 * LARGEST_FP16), weight.name))
    assert head.name not in to_mixed_precision(large, "fp16").narrow
    assert head.name in to_mixed_precision(large, "bf16").narrow


def test_every_weight_is_stored_once_in_the_precision_it_is_used_in(classifier: ModelProto) -> None:
    result = to_mixed_precision(classifier, "fp16").model
    used = {name for node in result.graph.node for name in node.input}
    assert {tensor.name for tensor in result.graph.initializer} <= used
    assert result.ByteSize() < 0.75 * classifier.ByteSize()


def test_what_cannot_be_rewritten_is_refused(classifier: ModelProto) -> None:
    with pytest.raises(UsageError, match="precision is 'int8'"):
        to_mixed_precision(classifier, "int8")  # type: ignore[arg-type]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nothing = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], []))
    with pytest.raises(UsageError, match="no float32 matrix product"):
        to_mixed_precision(nothing, "fp16")
    with pytest.raises(UsageError, match=r"--keep-fp32 \* leaves nothing in fp16; name fewer layers"):
        to_mixed_precision(classifier, "fp16", ["*"])
