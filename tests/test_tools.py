"""The tools that write what the documentation shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from spt_deploy.runtimes.onnx_file import read_facts
from tests.exported import make_exported

TOOLS = Path(__file__).parents[1] / "tools"


def row(name: str, peer: str, peer_speedup: float, gmacs: float, kept: float | None = None) -> dict[str, Any]:
    figures = {"median_ms": 10.0, "images_per_second": 100.0, "speedup": 2.0, "select_ratio": kept, "batch": 1}
    return {"name": name, "peer": peer, "peer_speedup": peer_speedup, "gmacs": gmacs, **figures}


def test_the_page_compares_a_row_with_swin_in_the_same_runtime_and_with_nothing_else() -> None:
    pytest.importorskip("matplotlib", reason="an extra")
    table = runpy.run_path(str(TOOLS / "benchmarks_page.py"))["table"]
    swin, int8 = "swin_t.onnx (openvino cpu fp32)", "spt_t.int8.onnx (openvino cpu int8), its own selection"
    rows = [
        row(swin, swin, 1.0, 4.5),
        row("spt_t.onnx (openvino cpu fp32), 25% kept", swin, 1.25, 3.6, 0.25),
        row(int8, int8, 1.0, 3.6, 0.25),
    ]
    lines = table(rows, 1).splitlines()[-3:]
    assert [line.split(" | ")[-2:] for line in lines] == [["", " |"], ["1.250", "1.250 |"], ["", " |"]]
    assert {line.count("|") for line in lines} == {8}
    assert lines[2].startswith("| spt_t.int8.onnx (openvino cpu int8) | 25% | 10.0 | 100.0 | 2.00 |")


def test_any_exported_file_becomes_one_of_8_bit_integers_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_exported(tmp_path, (64, 64), runtime_threshold=True, uint8_input=True, depths=(1, 1, 1, 1)).onnx
    out = tmp_path / "model.int8.onnx"
    monkeypatch.setattr(sys, "argv", ["int8_unchecked.py", str(made), str(out)])
    runpy.run_path(str(TOOLS / "int8_unchecked.py"), run_name="__main__")
    assert read_facts(out).precision == "int8"
    assert [value.name for value in onnx.load(out).graph.input] == ["images", "threshold"]
