"""``spt-deploy bench`` on real models: what is run, at which share of kept tokens; never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.errors import InputError, UsageError
from spt_deploy.workflows.bench import bench
from tests.exported import Exported, make_exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("bench"), (64, 64))


def test_ratios_are_forced_on_models_with_spa_blocks_and_swin_stands_beside_them(
    made: Exported, tmp_path: Path
) -> None:
    swin = make_exported(tmp_path, (64, 64), name="swin_micro")
    report = bench([swin.onnx, made.onnx], runtimes=["onnxruntime"], batches=[2], ratios=[1, 0.25], rounds=2)
    assert [(row.timing.name, row.select_ratio) for row in report.rows] == [
        ("model.onnx (onnxruntime cpu fp32)", None),
        ("model.onnx (onnxruntime cpu fp32), 100% kept", 1.0),
        ("model.onnx (onnxruntime cpu fp32), 25% kept", 0.25),
    ]
    assert report.rows[2].gmacs < report.rows[1].gmacs
    assert report.rows[0].timing.speedup == 1


def test_the_command_prints_one_json_document(made: Exported) -> None:
    result = CliRunner().invoke(main, ["bench", str(made.checkpoint), "--batch", "1", "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["machine"]["torch"].startswith("2.")
    (row,) = document["rows"]
    assert row["rounds"] == 2
    assert 0 < row["select_ratio"] < 1


def test_artefacts_of_different_sizes_are_not_compared(made: Exported, tmp_path: Path) -> None:
    other = make_exported(tmp_path, (32, 64))
    with pytest.raises(InputError, match="different sizes"):
        bench([made.checkpoint, other.checkpoint], rounds=2)


def test_values_out_of_range_are_refused(made: Exported) -> None:
    with pytest.raises(UsageError, match="ratios are"):
        bench([made.checkpoint], ratios=[1.5])
    with pytest.raises(UsageError, match="batches are"):
        bench([made.checkpoint], batches=[0])
    result = CliRunner().invoke(main, ["bench", str(made.checkpoint), "--batch", "one"])
    assert result.exit_code == 2
    assert "expected numbers with commas" in result.stderr
