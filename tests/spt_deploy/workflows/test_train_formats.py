"""Training on every format: what is found is said, what is broken is named, the options reach the data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spt_deploy.errors import RuntimeMissingError, UsageError
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import train
from tests.spt_deploy.datasets.data_formats import make_truth, write_bdd, write_coco, write_voc, write_yolo
from tests.spt_deploy.training.support import tiny_config


@pytest.mark.parametrize(
    ("write", "task", "title"),
    [
        (write_coco, "detect", "COCO JSON"),
        (lambda f, t: write_yolo(f, t, "list"), "detect", "YOLO labels"),
        (write_voc, "multilabel", "Pascal VOC XML"),
        (write_bdd, "detect", "BDD100K"),
    ],
    ids=["coco", "yolo", "voc", "bdd"],
)
def test_a_run_on_a_format_says_what_it_found_and_what_it_left_out(
    tmp_path: Path, write: object, task: str, title: str
) -> None:
    assert callable(write)
    folder = write(tmp_path / "data", make_truth())
    for path in folder.rglob("train_005.png"):
        path.unlink()
    said: list[str] = []
    mosaic = 0.5 if task == "detect" else 0.0
    config = tiny_config(folder, tmp_path / "run", task=task, epochs=1, mosaic=mosaic, max_broken=0.1)
    result = train(config, reports=Reports(said.append))
    assert result.record is not None
    assert 0 <= result.record["val"][result.metric] <= 1
    assert f"{folder} is {title}" in said[0]
    assert "train_005" in said[1]
    assert "left out" in said[1]


def test_validation_images_that_are_learnt_from_are_counted(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data", make_truth())
    file = folder / "data.yaml"
    file.write_text(file.read_text().replace("val: images/val", "val: [images/val, images/train]"))
    said: list[str] = []
    train(tiny_config(folder, tmp_path / "run", task="detect", epochs=1), reports=Reports(said.append))
    sentence = "8 validation images are in the training split, too"
    assert any(text.startswith(sentence) for text in said)
    assert f"**Note:** {sentence}" in (tmp_path / "run/report.md").read_text()


def test_options_of_the_data_that_cannot_be_meant_are_named(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data", make_truth())
    with pytest.raises(UsageError, match=r"mosaic is 0\.5 and the task classify; only detect"):
        tiny_config(folder, tmp_path / "run", mosaic=0.5)
    with pytest.raises(UsageError, match=r"mosaic is 2; expected a share"):
        tiny_config(folder, tmp_path / "run", mosaic=2, task="detect")
    with pytest.raises(UsageError, match="format is 'yaml'; known are coco"):
        train(tiny_config(folder, tmp_path / "run", task="detect", format="yaml"))
    with pytest.raises(UsageError, match=r"task is classify and .* is COCO JSON"):
        train(tiny_config(folder, tmp_path / "run"))


def test_what_average_precision_needs_is_missed_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # import then fails, as where it is not installed
    config = tiny_config(write_coco(tmp_path / "data", make_truth()), tmp_path / "run", task="detect", epochs=1)
    with pytest.raises(RuntimeMissingError, match=r"spt-deploy\[train\]"):
        train(config)
    assert not (tmp_path / "run").exists()
