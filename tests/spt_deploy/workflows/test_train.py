"""Whole runs on a data set that is learnt in seconds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.errors import InputError, ResultError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import train
from tests.spt_deploy.training.support import make_image_folder, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("data") / "colours")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).weights


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_speed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r | {"train": {k: v for k, v in r["train"].items() if k != "images_per_second"}} for r in records]


def test_a_run_learns_what_is_easy_and_selects_the_objects(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=24, val=10)
    config = tiny_config(data, tmp_path / "run", epochs=6, gate_lr_scale=40.0, alpha=0.05, label_smoothing=0.0)
    result = train(config)
    records = lines(tmp_path / "run/metrics.jsonl")
    assert [r["epoch"] for r in records] == list(range(1, 7))
    assert records[-1]["train"]["task_loss"] < 0.7 * records[0]["train"]["task_loss"]
    assert result.record is not None
    assert result.record["val"]["top1"] > 0.9  # chance is 1/3
    last = records[-1]["val"]
    assert list(last["select_ratio"]) == ["3.1", "3.2", "4.1", "4.2"]
    assert last["gate_recall"]["3.1"] > 0.9
    assert last["select_ratio"]["3.1"] < 0.9
    assert 0 < last["object_ratio"]["stride 16"] < last["object_ratio"]["stride 32"] < 1

    best = load_checkpoint(tmp_path / "run/best.pt")
    assert best.facts.model.class_names == ("blue", "green", "red")
    assert best.facts.preprocessing.size == (64, 64)
    assert best.training["select_ratio"] == result.record["val"]["select_ratio"]
    assert "optimizer" not in best.training
    written = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    assert written["config"] == config.to_dict()


def test_a_run_that_was_interrupted_and_resumed_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    straight = train(tiny_config(folder, tmp_path / "straight", epochs=4))
    assert straight.epochs == 4

    def interrupt_after_epoch_2(text: str) -> None:
        if text.startswith("epoch 2/4"):
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(folder, tmp_path / "resumed", epochs=4)
    first = train(config, reports=Reports(say=interrupt_after_epoch_2))
    assert first.interrupted
    assert first.epochs == 2
    assert load_checkpoint(tmp_path / "resumed/last.pt").training["history"][-1]["epoch"] == 2
    torch.rand(7)  # whatever happened in between
    second = train(config, resume=True)
    assert not second.interrupted
    assert second.epochs == 4
    assert_same_weights(tmp_path / "straight/last.pt", tmp_path / "resumed/last.pt")
    assert_same_weights(tmp_path / "straight/best.pt", tmp_path / "resumed/best.pt")
    records = [without_speed(lines(tmp_path / run / "metrics.jsonl")) for run in ("straight", "resumed")]
    assert records[0] == records[1]


def test_the_same_seed_gives_the_same_run_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny_config(folder, tmp_path / name, epochs=1, seed=seed))
    assert_same_weights(tmp_path / "a/last.pt", tmp_path / "b/last.pt")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a/last.pt", tmp_path / "c/last.pt")


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
    with pytest.raises(UsageError, match="holds a run already"):
        train(config)
    assert train(config, overwrite=True).epochs == 1


def test_without_boxes_the_select_loss_is_off_and_that_is_said_once(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=6, val=2, boxes=False)
    said: list[str] = []
    train(tiny_config(data, tmp_path / "run"), reports=Reports(say=said.append))
    assert sum("select loss is off" in text for text in said) == 1
    record = lines(tmp_path / "run/metrics.jsonl")[-1]
    assert record["train"]["loss"] == record["train"]["task_loss"]
    assert record["val"]["object_ratio"] == {}


def test_a_swin_trains_too(folder: Path, tmp_path: Path) -> None:
    result = train(tiny_config(folder, tmp_path / "run", model="swin_micro", epochs=1))
    assert result.record is not None
    assert result.record["val"]["select_ratio"] == {}


def test_a_broken_image_is_left_out_and_named(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data")
    broken = data / "train/green/003.png"
    broken.write_bytes(b"no image")
    said: list[str] = []
    result = train(tiny_config(data, tmp_path / "run"), reports=Reports(say=said.append))
    assert list(result.broken) == [broken]
    assert sum(str(broken) in text for text in said) == 1
    with pytest.raises(InputError, match=r"1 of 36 images cannot be read"):
        train(tiny_config(data, tmp_path / "strict", max_broken=0.0))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"the loss became (nan|inf) in epoch 1 on the batch .*\d\d\d\.png"):
        train(tiny_config(folder, tmp_path / "run", lr=1e30, clip=1e30))
    assert not (tmp_path / "run/last.pt").exists()


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
    other = run.invoke(main, ["train", "--resume", "--out", str(out), "--alpha", "0.5"])
    assert other.exit_code == 2
    assert "alpha is 0.5, was 0.01" in other.stderr


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
    assert sorted(p.name for p in out.iterdir()) == ["best.pt", "config.json", "last.pt", "metrics.jsonl"]


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
