"""A run that was ended, in whatever way, and goes on ends as one that nothing disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spt_deploy.errors import ResultError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training import presentation
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import train
from tests.spt_deploy.training.support import assert_same_weights, lines, make_image_folder, tiny_config, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("data") / "colours")


# Everything that has a state: averaged weights, accumulated batches, drop path, noise.
EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "ema": 0.9,
    "accumulate": 2,
    "drop_path": 0.2,
    "layer_decay": 0.8,
    "freeze": 1,
}


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)  # made before the fixture of conftest.py comes into force
    out = tmp_path_factory.mktemp("straight")
    assert train(tiny_config(folder, out, **EVERYTHING)).epochs == 4
    return out


def without_speed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    slow = {"seconds", "images_per_second"}
    return [
        {k: v if k != "train" else {n: m for n, m in v.items() if n not in slow} for k, v in r.items() if k not in slow}
        for r in records
    ]


def assert_same_run(a: Path, b: Path) -> None:
    assert_same_weights(a / "last.pt", b / "last.pt")
    assert_same_weights(a / "best.pt", b / "best.pt")
    one, other = (load_checkpoint(run / "last.pt").training["weights"] for run in (a, b))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(tensor, weights(a / "last.pt")[name]) for name, tensor in one.items())  # these, averaged
    assert without_speed(lines(a / "metrics.jsonl")) == without_speed(lines(b / "metrics.jsonl"))


def test_a_run_that_was_interrupted_and_resumed_ends_as_one_that_was_not(
    folder: Path, straight: Path, tmp_path: Path
) -> None:
    def interrupt_after_epoch_2(text: str) -> None:
        if text.startswith("epoch 2/4"):
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(folder, tmp_path / "resumed", **EVERYTHING)
    first = train(config, reports=Reports(say=interrupt_after_epoch_2))
    assert first.interrupted
    assert first.epochs == 2
    assert load_checkpoint(tmp_path / "resumed/last.pt").training["history"][-1]["epoch"] == 2
    torch.rand(7)  # whatever happened in between
    second = train(config, resume=True)
    assert not second.interrupted
    assert second.epochs == 4
    assert_same_run(straight, tmp_path / "resumed")


def test_a_run_that_was_killed_and_resumed_ends_as_one_that_was_not(
    folder: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    config = tiny_config(folder, out, **EVERYTHING)
    given = {**EVERYTHING, "model": config.model, "imgsz": 64, "batch": config.batch, "device": "cpu", "out": out}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "spt_deploy", "train", str(folder), *options], env=environment, stderr=subprocess.DEVNULL
    )
    while not (out / "metrics.jsonl").exists() or len(lines(out / "metrics.jsonl")) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = load_checkpoint(out / "last.pt").training["history"][-1]["epoch"]
    assert 1 <= done < 4  # last.pt comes after metrics.jsonl
    assert train(config, resume=True).epochs == 4
    assert_same_run(straight, out)


def test_a_run_that_was_killed_between_two_files_of_its_last_epoch_ends_with_files_that_agree(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed_after_last(self: Path, target: Path) -> Path:
        replace(self, target)
        if target.name == "last.pt":
            raise KeyboardInterrupt
        return target

    config = tiny_config(folder, tmp_path / "run", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_after_last)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert train(config, resume=True).epochs == 1
    assert [record["epoch"] for record in lines(tmp_path / "run/metrics.jsonl")] == [1]
    assert load_checkpoint(tmp_path / "run/best.pt").training["epoch"] == 1
    assert_same_weights(tmp_path / "run/best.pt", tmp_path / "run/last.pt")


def test_how_often_a_run_is_drawn_for_people_changes_nothing_of_it(
    folder: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presentation, "INTERVAL_S", 0.0)  # as of a run whose epochs take a minute
    train(tiny_config(folder, tmp_path / "run", **EVERYTHING))
    assert_same_run(straight, tmp_path / "run")


def test_a_finished_run_resumed_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run", epochs=1)
    train(config)
    before = (tmp_path / "run/last.pt").read_bytes()
    assert train(config, resume=True).epochs == 1
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_run_is_not_resumed_with_other_options_nor_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run", epochs=1)
    train(config)
    with pytest.raises(UsageError, match=r"lr is 0\.1, was 0\.0005"):
        train(tiny_config(folder, tmp_path / "run", epochs=1, lr=0.1), resume=True)
    with pytest.raises(
        UsageError, match=r"holds a run already \(last.pt, .*\); go on with it \(--resume\), replace it"
    ):
        train(config)
    (tmp_path / "run/last.pt").unlink()
    with pytest.raises(
        UsageError, match=r"holds a run already \(best.pt, metrics.jsonl\); replace it \(--overwrite\) or"
    ):
        train(config)
    assert train(config, overwrite=True).epochs == 1


def test_what_a_killed_or_spoilt_run_left_is_gone_from_the_next_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ResultError, match="the loss became"):
        train(tiny_config(folder, out, lr=1e30, clip=1e30))
    half = out / ".last.1234-0123abcd.pt"
    half.write_bytes(b"half")
    train(tiny_config(folder, out, epochs=1))
    assert not half.exists()
    assert not (out / "not_finite.txt").exists()
    half.write_bytes(b"half")
    train(tiny_config(folder, out, epochs=1), resume=True)
    assert not half.exists()


def test_a_run_is_resumed_on_the_data_it_was_begun_with_wherever_they_lie(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=3, val=2)
    config = tiny_config(data, tmp_path / "run", epochs=1)
    train(config)
    moved = replace(config, data=data.rename(tmp_path / "moved"))
    assert train(moved, resume=True).epochs == 1
    boxes = moved.data / "train/blue/boxes.txt"
    boxes.write_text(boxes.read_text().replace("000.png", "001.png"))
    with pytest.raises(
        UsageError, match=r"has 9 training and 6 validation images, .* with 9 and 6, of other names or anno"
    ):
        train(moved, resume=True)
    shutil.copy(moved.data / "train/red/000.png", moved.data / "train/red/more.png")
    with pytest.raises(UsageError, match=r"has 10 training and 6 .* begun with 9 and 6; .*\(--init .*best\.pt\)"):
        train(moved, resume=True)
