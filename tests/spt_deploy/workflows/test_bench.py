"""``spt-deploy bench`` on real models: what is run, at which share of kept tokens; never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.config import Task
from spt_deploy.errors import InputError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.preprocess import Preprocessing
from spt_deploy.workflows.bench import bench
from spt_deploy.workflows.bench_training import training_step
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model


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


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_training_times_a_step_of_each_checkpoint_at_forced_ratios(tmp_path: Path, task: Task) -> None:
    paths = []
    for name in ("swin_micro", "spt_micro"):
        paths.append(tmp_path / f"{name}.pt")
        save_checkpoint(paths[-1], make_model(name, task=task), Preprocessing.for_task(task, (64, 64)))
    report = bench(paths, batches=[2], ratios=[0.25], rounds=2, training=True)
    assert [(row.timing.name, row.select_ratio) for row in report.rows] == [
        ("swin_micro.pt (training, torch cpu)", None),
        ("spt_micro.pt (training, torch cpu), 25% kept", 0.25),
    ]
    assert report.rows[1].gmacs < report.rows[0].gmacs


def test_training_is_timed_of_checkpoints_at_forced_ratios_only(made: Exported) -> None:
    with pytest.raises(UsageError, match="name checkpoints only"):
        bench([made.onnx], ratios=[0.5], training=True)
    with pytest.raises(UsageError, match="--ratio"):
        bench([made.checkpoint], training=True)


def test_a_step_of_training_changes_the_weights_and_drops_what_was_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "spt_micro.pt"
    save_checkpoint(path, make_model("spt_micro"), Preprocessing.for_task("classify", (64, 64)))
    step = training_step(path, 2, torch.device("cpu"))
    losses = [step.run([torch.ones(2, count, dtype=torch.bool) for count in step.tokens()]) for _ in range(30)]
    assert losses[-1] < losses[0]
    nothing = step.run([torch.zeros(2, count, dtype=torch.bool) for count in step.tokens()])
    assert nothing != pytest.approx(losses[-1])
