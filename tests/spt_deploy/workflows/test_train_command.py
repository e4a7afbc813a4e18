"""``spt-deploy train``: what it prints, how signals end it, what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.training.ranks import resume_command
from tests.spt_deploy.training.support import make_image_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("data") / "colours")


def test_the_command_trains_resumes_and_prints_where_the_best_checkpoint_lies(folder: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = tmp_path / "run"
    common = ["train", str(folder), "--model", "spt_micro", "--imgsz", "64", "--epochs", "1", "--device", "cpu"]
    done = run.invoke(main, [*common, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out / 'best.pt'}: top1 ")
    again = run.invoke(main, ["train", "--resume", "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert again.stdout == done.stdout
    assert f"the run in {out} is finished, epoch 1 of 1; there is nothing left to do" in again.stderr
    other = run.invoke(main, ["train", "--resume", "--out", str(out), "--alpha", "0.5"])
    assert other.exit_code == 2
    assert "alpha is 0.5, was 0.01" in other.stderr


def test_a_signal_to_the_whole_process_group_ends_the_run_as_one_to_its_main_process(
    folder: Path, tmp_path: Path
) -> None:
    """What ``timeout`` sends; processes that read images get it, too."""
    options = ["--model", "spt_micro", "--imgsz", "64", "--epochs", "30", "--device", "cpu", "--workers", "2"]
    command = [sys.executable, "-m", "spt_deploy", "train", str(folder), *options, "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment) as run:
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            if line.startswith("epoch 1/30: loss"):
                os.killpg(run.pid, signal.SIGTERM)
            said.append(line)
    assert run.returncode == 130, said
    assert any("go on with: spt-deploy train --resume" in line for line in said)


def test_under_torchrun_it_says_to_go_on_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resume_command(Path("runs/a")) == "spt-deploy train --resume --out runs/a"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command(Path("runs/a b")) == "torchrun ... -m spt_deploy train --resume --out 'runs/a b'"


def test_ctrl_c_ends_the_command_with_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_after_epoch_1(text: str) -> None:
        click.echo(text, err=True)
        if text.startswith("epoch 1/3: loss"):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("spt_deploy.cli.train.status", interrupt_after_epoch_1)
    out = tmp_path / "run"
    options = ["--model", "spt_micro", "--imgsz", "64", "--epochs", "3", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(main, ["train", str(folder), *options])
    assert result.exit_code == 130
    assert "stopped after 1 of 3 whole epochs" in result.stderr
    assert f"go on with: spt-deploy train --resume --out {out}" in result.stderr
    files = ["best.pt", "config.json", "curves.png", "last.pt", "metrics.jsonl", "report.md", "samples"]
    assert sorted(p.name for p in out.iterdir()) == files
    assert f"spt-deploy train --resume --out {out}" in (out / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "DATA is missing"),
        (["nowhere"], "there is no folder nowhere"),
        (["DATA", "--resume", "--overwrite"], "give one of them"),
        (["DATA", "--imgsz", "10"], "too small"),
        (["DATA", "--init", "nowhere.pt"], "there is no file nowhere.pt"),
        (["--resume", "--out", "nowhere"], "nowhere holds no last.pt"),
        (["--resume"], "no run to go on with"),
    ],
)
def test_bad_usage_is_one_sentence_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["train", *[str(folder) if a == "DATA" else a for a in arguments]])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []
