"""Whole runs on a data set that is learnt in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from spt_deploy.errors import InputError, ResultError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.precision import MixedPrecision
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import standing, train
from tests.spt_deploy.training.support import assert_same_weights, lines, make_image_folder, tiny_config, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("data") / "colours")


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


def test_the_same_seed_gives_the_same_run_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny_config(folder, tmp_path / name, epochs=1, seed=seed))
    assert_same_weights(tmp_path / "a/last.pt", tmp_path / "b/last.pt")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a/last.pt", tmp_path / "c/last.pt")


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


def test_a_step_that_finds_no_memory_says_how_to_need_less(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MixedPrecision, "step", lambda *_: torch.empty(1 << 55))
    with pytest.raises(ResultError, match=r"cpu is too small for spt_micro and 8 images .*--batch 4 --accumulate 2"):
        train(tiny_config(folder, tmp_path / "run"))


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


def test_the_better_metric_wins_and_in_a_tie_the_sparser_selection() -> None:
    def record(top1: float, *ratios: float) -> dict[str, Any]:
        return {"val": {"top1": top1, "select_ratio": dict(zip("abcd", ratios, strict=False))}}

    assert standing(record(0.9, 1.0, 1.0), "top1") > standing(record(0.8, 0.1, 0.1), "top1")
    assert standing(record(0.9, 0.4, 0.2), "top1") > standing(record(0.9, 0.4, 0.3), "top1")
    assert not standing(record(0.9), "top1") > standing(record(0.9), "top1")  # without SPA blocks the first one stays
