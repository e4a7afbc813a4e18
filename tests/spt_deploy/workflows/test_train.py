"""Whole runs on a data set that is learnt in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch.nn import Parameter

from spt_deploy.cli import main
from spt_deploy.errors import InputError, ResultError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training import presentation
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import standing, train
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
    slow = {"seconds", "images_per_second"}
    return [
        {k: v if k != "train" else {n: m for n, m in v.items() if n not in slow} for k, v in r.items() if k not in slow}
        for r in records
    ]


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


def test_the_same_seed_gives_the_same_run_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny_config(folder, tmp_path / name, epochs=1, seed=seed))
    assert_same_weights(tmp_path / "a/last.pt", tmp_path / "b/last.pt")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a/last.pt", tmp_path / "c/last.pt")


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


def test_without_boxes_the_select_loss_is_off_and_that_is_said_once(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=6, val=2, boxes=False)
    said: list[str] = []
    train(tiny_config(data, tmp_path / "run"), reports=Reports(say=said.append))
    assert sum("select loss is off" in text for text in said) == 1
    record = lines(tmp_path / "run/metrics.jsonl")[-1]
    assert record["train"]["loss"] == record["train"]["task_loss"]
    assert record["val"]["object_ratio"] == {}


def test_labels_can_take_the_place_of_the_selection(folder: Path, tmp_path: Path) -> None:
    result = train(tiny_config(folder, tmp_path / "run", epochs=1, select_from_labels=True))
    assert result.record is not None
    val = result.record["val"]
    assert val["select_ratio"]["3.1"] == val["object_ratio"]["stride 16"]
    assert set(val["gate_precision"].values()) == set(val["gate_recall"].values()) == {1.0}
    assert "Labels took the place" in (tmp_path / "run/report.md").read_text(encoding="utf-8")


def test_the_select_loss_is_the_mean_over_labelled_images_whatever_the_batch(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=4, val=4)
    for split in ("train", "val"):
        (data / split / "green/boxes.txt").unlink()
    records = []
    for batch in (1, 5, 12):  # of images with boxes, without, and of both
        config = tiny_config(data, tmp_path / f"run {batch}", batch=batch, epochs=1, lr=1e-12, alpha=1.0)
        record = train(config).record
        assert record is not None
        assert record["train"]["loss"] == record["train"]["task_loss"] + record["train"]["select_loss"]
        records.append(record["val"])
    for record in records[1:]:
        assert record["select_loss"] == pytest.approx(records[0]["select_loss"], rel=1e-3)
        assert record["task_loss"] == pytest.approx(records[0]["task_loss"], rel=1e-3)


def test_labels_that_are_not_there_cannot_select(tmp_path: Path) -> None:
    data = make_image_folder(tmp_path / "data", train=2, val=1, boxes=False)
    with pytest.raises(UsageError, match="has neither boxes nor masks"):
        train(tiny_config(data, tmp_path / "run", select_from_labels=True))
    with pytest.raises(UsageError, match="swin_micro, which selects nothing"):
        tiny_config(data, tmp_path / "run", model="swin_micro", select_from_labels=True)


def test_frozen_stages_end_as_they_began(folder: Path, tmp_path: Path) -> None:
    train(tiny_config(folder, tmp_path / "begun", epochs=1))
    begin = tmp_path / "begun/last.pt"
    train(tiny_config(folder, tmp_path / "frozen", epochs=1, init=begin, freeze=3, ema=0.0))
    before, after = weights(begin), weights(tmp_path / "frozen/last.pt")
    same = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    stages = {n for n in after if n.startswith(("backbone.patch_embed.", "backbone.stages."))}
    frozen = {n for n in stages if not n.startswith("backbone.stages.3.") and ".gate." not in n}
    assert frozen <= same
    assert all(".gate." in name for name in same - frozen)  # a gate rests where the finer score wins everywhere


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
    listed = (tmp_path / "run/not_finite.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 8
    assert all(Path(name).is_file() for name in listed)
    assert not (tmp_path / "run/last.pt").exists()


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


def test_a_gradient_that_is_no_number_stops_the_run_before_it_reaches_the_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def spoil(self: MixedPrecision, parameters: list[Parameter], *others: Any) -> bool:
        nonlocal steps
        steps += 1
        if steps == 6:  # the first of epoch 2
            assert parameters[0].grad is not None
            parameters[0].grad.view(-1)[0] = torch.inf
        return whole(self, parameters, *others)

    whole = MixedPrecision.step
    monkeypatch.setattr(MixedPrecision, "step", spoil)
    with pytest.raises(ResultError, match=r"the gradient is no finite number in epoch 2 on the batch .*\d\d\d\.png"):
        train(tiny_config(folder, tmp_path / "run", epochs=3))
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(tmp_path / "run/last.pt").weights.values())


def test_weights_that_validate_to_no_number_are_not_kept(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run", epochs=1, batch=64, lr=1e30, clip=1e30, warmup=0.0)
    with pytest.raises(ResultError, match=r"the loss on the validation images is (nan|inf)"):
        train(config)
    assert not (tmp_path / "run/best.pt").exists()


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


def test_the_better_metric_wins_and_in_a_tie_the_sparser_selection() -> None:
    def record(top1: float, *ratios: float) -> dict[str, Any]:
        return {"val": {"top1": top1, "select_ratio": dict(zip("abcd", ratios, strict=False))}}

    assert standing(record(0.9, 1.0, 1.0), "top1") > standing(record(0.8, 0.1, 0.1), "top1")
    assert standing(record(0.9, 0.4, 0.2), "top1") > standing(record(0.9, 0.4, 0.3), "top1")
    assert not standing(record(0.9), "top1") > standing(record(0.9), "top1")  # without SPA blocks the first one stays
