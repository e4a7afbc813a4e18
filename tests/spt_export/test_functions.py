"""The ONNX functions against their meaning in PyTorch, in ONNX Runtime and in OpenVINO, on awkward counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from spt_deploy.config import DYNAMIC_PACKINGS, PACKINGS, Packing
from spt_deploy.model.domain import PLUGIN_ATTRIBUTES
from spt_export.functions import function_protos
from tests.operator_chain import COUNTS, MAPS, assert_same, chain, expected, inputs


@pytest.fixture
def functions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO computes them as they are, not by operators of ours."""
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    from spt_deploy.runtimes import openvino_runner

    monkeypatch.setattr(openvino_runner, "operators_of_ours", lambda: "")


@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS)
def test_functions_mean_the_same_as_the_reference_in_onnx_runtime(
    packing: Packing, height: int, width: int, shift: int
) -> None:
    model = chain(packing, height, width, shift)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for counts in COUNTS:
        feeds = inputs(counts, height * width)
        found = dict(zip(names, session.run(None, feeds), strict=True))
        assert_same(found, expected(feeds, packing, height, width, shift))


@pytest.mark.usefixtures("functions_alone")
@pytest.mark.parametrize("packing", DYNAMIC_PACKINGS)
@pytest.mark.parametrize(("height", "width", "shift"), MAPS[:5])
def test_inlined_functions_mean_the_same_as_the_reference_in_openvino(
    packing: Packing, height: int, width: int, shift: int
) -> None:
    from spt_deploy.runtimes.openvino_runner import compile_model

    compiled = compile_model(chain(packing, height, width, shift), "the chain")
    for counts in COUNTS:
        feeds = inputs(counts, height * width)
        results = compiled(feeds)
        right = expected(feeds, packing, height, width, shift)
        assert_same({name: results[name] for name in right}, right)


@pytest.mark.usefixtures("functions_alone")
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 4), (14, 14)])
def test_the_rest_of_the_batch_changes_no_bit_of_an_answer_in_openvino(height: int, width: int) -> None:
    from spt_deploy.runtimes.openvino_runner import compile_model

    compiled = compile_model(chain("per-image", height, width, 0), "the chain")
    feeds = inputs((3, 49, 0, 17, 33), height * width)
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
    model.CopyFrom(chain(packing, 7, 7, 0))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name != "threshold":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("h", "qkv", "o", "x"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = inputs((20, 0, 49), 49)
    half: dict[str, Any] = dict(feeds) | {"h": feeds["h"].astype(np.float16)}
    (found,) = session.run(["x"], half)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected(feeds, packing, 7, 7, 0)["x"], atol=2e-2, rtol=2e-2)
