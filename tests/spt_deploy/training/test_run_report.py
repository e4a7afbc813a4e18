"""What the report of a run tells, and the pictures it shows."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from spt_deploy.config import ModelConfig
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.facts import ModelFacts
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.curves import draw_curves
from spt_deploy.training.run_report import RunFacts, chance_level, report_text, warnings_of
from spt_deploy.training.sample_pictures import SMALLEST_SIDE, write_samples
from tests.spt_deploy.training.support import tiny_config

BLOCKS = ("3.1", "3.2", "4.1", "4.2")
CLASSES = ("blue", "green", "red")


def epoch(number: int, top1: float, kept: float = 0.3, recall: float = 0.97, blocks: tuple[str, ...] = BLOCKS) -> Any:
    val = {
        "task_loss": 1.0 / number,
        "select_loss": 2.0 / number,
        "top1": top1,
        "top5": 1.0,
        "select_ratio": dict.fromkeys(blocks, kept),
        "object_ratio": {"stride 16": 0.25, "stride 32": 0.35} if blocks else {},
        "gate_precision": dict.fromkeys(blocks, 0.8),
        "gate_recall": dict.fromkeys(blocks, recall),
    }
    train = {"loss": 1.0, "task_loss": 0.9, "select_loss": 2.0, "images_per_second": 10.0}
    return {"epoch": number, "train": train, "val": val, "seconds": 61.0}


def facts_of(history: list[Any], best: int, **changes: Any) -> RunFacts:
    config = changes.pop("config", tiny_config(Path("my data"), Path("runs/my run"), epochs=3))
    train, records = (
        tuple(Record(Path(f"my data/{split}/{CLASSES[i % 3]}/{i}.png"), label=i % 3) for i in range(6))
        for split in ("train", "val")
    )
    data = DataSet(CLASSES, train, records)
    values: dict[str, Any] = {
        "config": config,
        "model": ModelConfig(config.backbone(), "classify", CLASSES),
        "data": data,
        "metric": "top1",
        "chance": chance_level("classify", data),
        "history": history,
        "best": history[best - 1],
        "alpha": 0.01,
        "device": "CPU",
        "processes": 1,
        "samples": [(Path("1-0.jpg"), records[0])],
        "has_curves": True,
        "broken": 0,
    }
    return RunFacts(**(values | changes))


def test_below_a_sample_stands_how_many_objects_are_in_it() -> None:
    samples = [
        (Path(f"{count}.jpg"), Record(Path("x.png"), objects=Objects.from_boxes([[0, 0, 9, 9]] * count, 0)))
        for count in range(3)
    ]
    text = report_text(facts_of([epoch(1, 0.4)], best=1, samples=samples))
    assert re.findall(r"<br>([^|]*?) \|", text) == ["0 objects", "1 object", "2 objects"]


def test_what_is_there_once_is_said_so() -> None:
    record = Record(Path("my data/val/blue/0.png"), label=0)
    best = epoch(1, 1.0)
    best["val"]["gate_recall"]["3.1"] = 0.5
    config = tiny_config(Path("my data"), Path("run"), epochs=1, batch=1)
    data = DataSet(CLASSES[:1], (record,), (record,))
    text = report_text(facts_of([best], best=1, config=config, data=data, broken=1))
    assert "1 training and 1 validation image, 1 class |" in text
    assert "**Note:** 1 validation image is in the training split, too: " in text
    assert "pixels, 1 image a step |" in text
    assert "1 unreadable image or annotation was left out" in text
    assert "1 of 4 blocks drops tokens" in text


def test_classes_have_their_metric_and_their_number_the_lowest_first() -> None:
    boxes = Objects.from_boxes([[0, 0, 9, 9]] * 3, [0, 1, 1], [False, False, True])
    records = tuple(Record(Path(f"my data/{i}.png"), labels=(0, 1), objects=boxes) for i in range(4))
    data = DataSet(CLASSES, records, records[:1])
    best = epoch(1, 0.4)
    best["val"] |= {"AP": 0.4, "per_class": {CLASSES[0]: 0.6, CLASSES[1]: 0.2}}
    configs = {
        task: tiny_config(Path("my data"), Path("run"), task=task, epochs=1) for task in ("detect", "multilabel")
    }
    head = "## Classes\n\nOf the best epoch, the lowest first.\n\n| class | AP | training"
    text = report_text(facts_of([best], best=1, config=configs["detect"], data=data, metric="AP"))
    assert f"{head} objects | validation objects |" in text
    assert f"| {CLASSES[1]} | 20.0 % | 4 | 1 |\n| {CLASSES[0]} | 60.0 % | 4 | 1 |" in text
    best["val"] |= {"mAP": 0.4}
    text = report_text(facts_of([best], best=1, config=configs["multilabel"], data=data, metric="mAP"))
    assert f"{head} images | validation images |" in text
    records = tuple(Record(Path(f"my data/{i}.png"), label=i % 2) for i in range(5))
    text = report_text(facts_of([best], best=1, data=DataSet(CLASSES, records, records[:1])))
    assert "| class | top1 | training images | validation images |" in text
    assert f"| {CLASSES[1]} | 20.0 % | 2 | 0 |\n| {CLASSES[0]} | 60.0 % | 3 | 1 |" in text
    best["val"]["per_class"] = {f"c{i}": i / 100 for i in range(50)}
    text = report_text(facts_of([best], best=1, config=configs["detect"], data=data, metric="AP"))
    assert "the 20 lowest of 50." in text
    assert "| c19 | 19.0 % | 0 | 0 |" in text
    assert "| c20 |" not in text
    best["val"]["per_class"] = {CLASSES[0]: 0.6}
    assert "## Classes" not in report_text(facts_of([best], best=1, config=configs["detect"], data=data, metric="AP"))


def test_the_report_says_what_came_of_what_and_how_to_go_on() -> None:
    text = report_text(facts_of([epoch(1, 0.4), epoch(2, 0.9), epoch(3, 0.8)], best=2))
    assert text.startswith("# my run\n\n`spt_micro` for classify on `my data`: **top1 90.0 %** in epoch 2 of 3 (40.0 %")
    assert "33.3 % without looking" in text
    assert "|  | epoch 1 | epoch 2 (best) | epoch 3 |" in text
    assert "| 4.2 | 30.0 % | 35.0 % | 80.0 % | 97.0 % |" in text
    assert "less work than the Swin of the same size" in text
    assert "    spt-deploy export 'runs/my run/best.pt'\n" in text
    assert "--data 'my data/val'" in text
    assert "3 min 3 s" in text
    assert '<img src="samples/1-0.jpg"' in text
    assert "**Note:**" not in text
    assert "--resume" not in text


@pytest.mark.parametrize(
    ("history", "changes", "sentence"),
    [
        (
            [epoch(1, 0.9, kept=1.0)] * 3,
            {},
            r"so selection saves nothing: raise --alpha \(it was 0.01\)",
        ),
        ([epoch(1, 0.9, kept=1.0)] * 3, {"alpha": 0.0}, "nothing taught the gates; add boxes or masks"),
        ([epoch(1, 0.9, kept=0.0)] * 3, {}, "No SPA block kept any token"),
        ([epoch(1, 0.9, kept=0.6)] * 3, {}, "keep 30 points more than lies in objects"),
        ([epoch(1, 0.9, recall=0.5)] * 3, {}, r"4 of 4 blocks drop tokens that lie in objects .* 50.0 %"),
        ([epoch(1, 0.3)] * 3, {}, "no better than never looking"),
        ([epoch(1, 0.9)] * 2, {}, "stopped after 2 of 3 epochs"),
        ([epoch(1, 0.9)] * 3, {"broken": 4}, "4 unreadable images"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_first(history: list[Any], changes: dict[str, Any], sentence: str) -> None:
    facts = facts_of(history, best=1, **changes)
    assert any(re.search(sentence, warning) for warning in warnings_of(facts))
    assert report_text(facts).index("**Note:**") < report_text(facts).index("## Result")


def test_a_swin_has_no_selection_to_report() -> None:
    config = tiny_config(Path("data"), Path("run"), model="swin_micro", epochs=1)
    text = report_text(facts_of([epoch(1, 0.9, blocks=())], best=1, config=config))
    assert "## Selection" not in text
    assert "GMACs an image of 64 x 64 pixels" in text


def test_chance_is_the_commonest_class_and_the_mean_share() -> None:
    def data(*records: Record) -> DataSet:
        return DataSet(("a", "b"), (), records)

    one = [Record(Path("x.png"), label=i, labels=(i,)) for i in (0, 0, 0, 1)]
    assert chance_level("classify", data(*one)) == 0.75
    assert chance_level("multilabel", data(*one)) == 0.5
    assert chance_level("detect", data(*one)) is None
    assert chance_level("classify", data()) is None


@pytest.mark.parametrize(
    "history",
    [
        [epoch(1, 0.5)],
        [epoch(i + 1, 0.5 + 0.01 * i, blocks=tuple(f"3.{b + 1}" for b in range(18))) for i in range(20)],
        [epoch(i + 1, 0.5, blocks=()) for i in range(2)],
    ],
    ids=["one epoch", "deep", "swin"],
)
def test_curves_are_a_picture_whatever_the_run(tmp_path: Path, history: list[Any]) -> None:
    draw_curves(tmp_path / "curves.png", history, "top1", 1, 0.1)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    assert picture.shape[1] == 1210
    assert picture.std() > 10


def test_of_equal_epochs_the_curves_mark_the_one_that_the_report_calls_best(tmp_path: Path) -> None:
    history = [epoch(i + 1, 0.5, kept=0.9 - 0.1 * i) for i in range(4)]
    dots = []
    for best in (1, 4):
        path = tmp_path / f"{best}.png"
        draw_curves(path, history, "top1", best)
        picture = cv2.imread(str(path))
        assert picture is not None
        dots.append(picture[: picture.shape[0] // 2, picture.shape[1] // 2 :])  # the metric's part
    columns = np.flatnonzero((dots[0] != dots[1]).any(axis=(0, 2)))
    assert columns.min() < dots[0].shape[1] / 4
    assert columns.max() > dots[0].shape[1] * 3 / 4


def test_a_class_name_does_not_break_the_table_of_samples() -> None:
    facts = facts_of([epoch(1, 0.9)], best=1)
    text = report_text(replace(facts, data=replace(facts.data, class_names=("a|b <c>", *CLASSES[1:]))))
    assert "<br>a&#124;b &lt;c&gt; |" in text


def test_without_matplotlib_curves_are_left_out_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'spt-deploy\[train\]'"):
        draw_curves(tmp_path / "curves.png", [epoch(1, 0.5)], "top1", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_samples_are_chosen_by_the_seed_and_large_enough_to_read(tmp_path: Path, task: Any) -> None:
    random = np.random.default_rng(0)
    records = []
    for index in range(5):
        path = tmp_path / f"image {index}.png"
        cv2.imwrite(str(path), random.integers(0, 255, (40, 60, 3), dtype=np.uint8))
        records.append(Record(path, label=0))
    records[2].path.write_bytes(b"no image")
    config = tiny_config(tmp_path, tmp_path / "run")
    torch.manual_seed(0)
    model = SptModel(ModelConfig(config.backbone(), task, CLASSES, top_k=10)).eval()
    facts = ModelFacts(model.config, Preprocessing.for_task(task, (64, 64)), "0")
    chosen = [write_samples(tmp_path / "samples", model, facts, records, seed, count=3) for seed in (1, 1, 2)]
    names = [[path.name for path, _ in part] for part in chosen]
    assert names[0] == names[1] != names[2]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == sorted(names[2])  # the older ones are gone
    assert all(" " not in name and "_2" not in name for part in names for name in part)
    assert [record for _, record in chosen[2]] == [r for r in records if r in [record for _, record in chosen[2]]]
    assert min(cv2.imread(str(path)).shape[:2] for path, _ in chosen[2])[0] == SMALLEST_SIDE  # type: ignore[union-attr]
    assert len(write_samples(tmp_path / "samples", model, facts, records, seed=0)) == 4


def test_a_report_of_a_run_from_weights_names_them() -> None:
    config = replace(tiny_config(Path("data"), Path("run"), epochs=1), init=Path("swin.pth"))
    assert "| start | `swin.pth` |" in report_text(facts_of([epoch(1, 0.9)], best=1, config=config))
