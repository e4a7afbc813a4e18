"""What an exported file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from spt_deploy.config import PACKINGS, Packing
from spt_deploy.errors import UsageError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.model.domain import DOMAIN
from spt_deploy.model.operators import packed_attention
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes.onnx_file import inlined
from spt_export.exporter import to_onnx
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("classify"), (64, 96), selection="all")


def _shapes(values: object) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # type: ignore[attr-defined]


def test_the_file_passes_the_full_check(classify: Exported) -> None:
    onnx.checker.check_model(classify.onnx, full_check=True)


@pytest.mark.parametrize("packing", PACKINGS)
def test_onnx_runtime_has_nothing_to_warn_of_in_standard_operators_alone(
    tmp_path: Path, packing: Packing, capfd: pytest.CaptureFixture[str]
) -> None:
    model = inlined(onnx.load(make_exported(tmp_path, (64, 64), packing=packing).onnx))
    capfd.readouterr()
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


def test_each_spa_block_is_four_nodes(classify: Exported) -> None:
    ours = [node.op_type for node in onnx.load(classify.onnx).graph.node if node.domain == DOMAIN]
    assert ours == ["SelectTokens", "PackedQKV", "PackedAttention", "UnpackProject"] * 4


def test_queries_come_scaled_to_every_attention_and_the_model_stays_as_it_is(classify: Exported) -> None:
    graph = onnx.load(classify.onnx).graph
    scales = [
        a.f for node in graph.node if node.op_type == "PackedAttention" for a in node.attribute if a.name == "scale"
    ]
    assert scales == [1.0] * 4
    weights = {tensor.name.removeprefix("model."): numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = load_checkpoint(classify.checkpoint).weights
    folded = [name for name in state if name.endswith("attn.qkv.weight") and name in weights]
    assert len(folded) >= 4
    for name in folded:
        query, rest = np.split(weights[name], [len(weights[name]) // 3])
        np.testing.assert_array_equal(rest, state[name][len(query) :])
        np.testing.assert_allclose(query, state[name][: len(query)] * 32**-0.5, rtol=1e-6)


def test_a_scale_that_no_function_of_a_file_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    qkv, one = torch.zeros(4, 192), torch.zeros(2, dtype=torch.int64)
    for scale in (None, 32**-0.5):
        with pytest.raises(UsageError, match="fold_scale"):
            packed_attention(qkv, one, one, qkv, heads=2, window=7, tokens=4, width=2, packing="per-image", scale=scale)


def test_inputs_and_outputs_have_the_documented_names_and_a_free_batch(classify: Exported) -> None:
    graph = onnx.load(classify.onnx).graph
    assert _shapes(graph.input) == {"images": ["batch", 3, 64, 96]}
    assert _shapes(graph.output) == {
        "logits": ["batch", 5],
        "select_ratio": ["batch", 4],
        "selection": ["batch", 4, 6],
        "kept_3.1": ["batch", 4, 6],
        "kept_3.2": ["batch", 4, 6],
        "kept_4.1": ["batch", 2, 3],
        "kept_4.2": ["batch", 2, 3],
    }


def test_the_threshold_is_a_constant_unless_it_is_asked_for_as_an_input(classify: Exported, tmp_path: Path) -> None:
    def thresholds(graph: onnx.GraphProto) -> set[str]:
        return {node.input[2] for node in graph.node if node.op_type == "SelectTokens"}

    fixed = onnx.load(classify.onnx).graph
    assert thresholds(fixed) <= {tensor.name for tensor in fixed.initializer}
    graph = onnx.load(make_exported(tmp_path, (64, 96), runtime_threshold=True).onnx).graph
    assert _shapes(graph.input) == {"images": ["batch", 3, 64, 96], "threshold": []}
    assert graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (logit,) = thresholds(graph)  # one for all blocks
    made_by = {node.output[0]: node for node in graph.node}
    assert made_by[logit].op_type == "Log"
    # Nothing else of the graph is another: three nodes make a logit of the input.
    extra = [node.op_type for node in graph.node]
    for node in fixed.node:
        extra.remove(node.op_type)
    assert sorted(extra) == ["Div", "Log", "Sub"]


def test_bytes_are_cast_first_and_normalised_by_four_nodes(classify: Exported, tmp_path: Path) -> None:
    graph = onnx.load(make_exported(tmp_path, (64, 96), uint8_input=True).onnx).graph
    assert _shapes(graph.input) == {"images": ["batch", 64, 96, 3]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    # TensorRT takes bytes in a Cast and nowhere else.
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    extra = [node.op_type for node in graph.node]
    for node in onnx.load(classify.onnx).graph.node:
        if node.op_type in extra:  # the masks' own nodes are not there
            extra.remove(node.op_type)
    assert sorted(extra) == ["Cast", "Mul", "Sub", "Transpose"]


def test_the_facts_travel_in_the_metadata(classify: Exported) -> None:
    metadata = {p.key: p.value for p in onnx.load(classify.onnx).metadata_props}
    facts = ModelFacts.from_json(metadata[METADATA_KEY], "the file")
    assert facts.preprocessing == Preprocessing.for_task("classify", (64, 96))
    assert facts.model.backbone.packing == "per-image"


def test_nothing_in_the_file_tells_where_it_was_made(classify: Exported) -> None:
    content = classify.onnx.read_bytes()
    for word in (str(Path.cwd()), "site-packages", "stack_trace"):
        assert word.encode() not in content


@pytest.mark.parametrize("packing", ["per-image", "static"])
def test_a_ranking_is_counted_from_the_nearer_end(tmp_path: Path, packing: Packing) -> None:
    graph = onnx.load(make_exported(tmp_path, (64, 96), packing=packing, selector="topk", keep_ratio=0.7).onnx).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    listed = [constants[node.input[1]].item() for node in graph.node if node.op_type == "TopK"]
    assert listed == [8, 8, 2, 2]  # of 24 and of 6 tokens, where 17 and 5 are kept


def test_a_model_without_spa_blocks_has_standard_operators_only() -> None:
    model = make_model("swin_micro")
    facts = ModelFacts(model.config, Preprocessing.for_task("classify", (32, 32)), "0")
    proto = to_onnx(model, facts)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [output.name for output in proto.graph.output] == ["logits"]


def test_an_unknown_selection_output_is_refused() -> None:
    model = make_model()
    facts = ModelFacts(model.config, Preprocessing.for_task("classify", (32, 32)), "0")
    with pytest.raises(UsageError, match="summary, all, none"):
        to_onnx(model, facts, "some")  # type: ignore[arg-type]
