"""NVIDIA's own ONNX parser takes our plugins for the ``spt`` nodes, before the functions of the same names."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from spt_deploy.model.domain import DOMAIN
from tests.exported import make_exported
from tests.spt_plugins.child import run_python

pytestmark = pytest.mark.skipif(
    not (find_spec("tensorrt_rtx") and find_spec("tensorrt_lean_bindings") and find_spec("triton")),
    reason="needs tensorrt-rtx, tensorrt-lean-cu13 and triton",
)

B, N, C, HEADS, TABLE = 2, 24, 128, 4, 169
SLOTS = B * N
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# Types and shapes of each operator's inputs, for the model below.
INPUTS: dict[str, list[tuple[int, list[int]]]] = {
    "SelectTokens": [(FLOAT, [B, N]), (INT64, [N]), (FLOAT, [])],
    "PackedQKV": [(FLOAT, [B, N, C]), (FLOAT, [B, N]), (INT64, [SLOTS]), (FLOAT, [3 * C, C]), (FLOAT, [3 * C])],
    "PackedAttention": [(FLOAT, [SLOTS, 3 * C]), (INT64, [SLOTS]), (INT64, [B + 1]), (FLOAT, [TABLE, HEADS])],
    "UnpackProject": [
        (FLOAT, [SLOTS, C]),
        (INT64, [SLOTS]),
        (INT64, [B, N]),
        (FLOAT, [B, N, C]),
        (FLOAT, [C, C]),
        (FLOAT, [C]),
    ],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An exported file's first node of each operator, alone in a file with its function."""
    folder = tmp_path_factory.mktemp("parser")
    exported = onnx.load(make_exported(folder, (64, 96)).onnx)
    made = {}
    for operator, inputs in INPUTS.items():
        node = next(n for n in exported.graph.node if n.domain == DOMAIN and n.op_type == operator)
        values = [helper.make_tensor_value_info(n, *i) for n, i in zip(node.input, inputs, strict=True)]
        kind = INT64 if operator == "SelectTokens" else FLOAT
        outputs = [helper.make_tensor_value_info(name, kind, None) for name in node.output]
        model = helper.make_model(
            helper.make_graph([node], operator, values, outputs),
            opset_imports=exported.opset_import,
            functions=exported.functions,
            ir_version=exported.ir_version,
        )
        made[operator] = folder / f"{operator}.onnx"
        onnx.save(model, made[operator])
    return made


def say(files: dict[str, Path], mode: str) -> dict[str, dict[str, Any]]:
    lines = run_python("-W", "ignore", "-m", "tests.spt_plugins.rtx_parser", mode, *map(str, files.values()))
    answers = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return dict(zip(files, answers, strict=True))


def test_the_parser_takes_the_plugin_where_it_is_registered(files: dict[str, Path]) -> None:
    for operator, said in say(files, "with").items():
        assert any(f"Found registered plugin: {operator}. Importing this node as a plugin." in t for t in said["log"])
        assert not any("local function" in text.lower() for text in said["log"]), operator


def test_without_the_plugin_it_takes_the_function(files: dict[str, Path]) -> None:
    """The control: the sentence above is not what it says of any node."""
    for operator, said in say(files, "without").items():
        assert not any("Importing this node as a plugin" in text for text in said["log"])
        assert any("function" in text.lower() for text in said["log"]), operator
