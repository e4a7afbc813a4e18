"""What an artefact scores on labelled images, in any runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.datasets.formats import read_data
from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.images import read_image
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import deployed_checkpoint
from spt_deploy.workflows.task_metric import MetricReport, compare_metrics, read_labelled
from spt_deploy.workflows.train import train
from spt_deploy.workflows.validate import validate
from spt_export.exporter import to_onnx
from tests.spt_deploy.datasets.data_formats import make_truth, write_coco
from tests.spt_deploy.model.models import randomise
from tests.spt_deploy.training.support import COLOURS, make_image_folder, tiny_config

SIZE = (64, 64)


def save(path: Path, task: Task = "classify", classes: tuple[str, ...] = tuple(COLOURS), seed: int = 0) -> Path:
    """A checkpoint of random weights."""
    model = SptModel(ModelConfig(BackboneConfig.from_name("spt_micro"), task, classes, head_width=16))
    randomise(model, seed)
    save_checkpoint(path, model, Preprocessing.for_task(task, SIZE))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "data")


def test_top1_is_the_share_of_images_whose_class_is_the_best(folder: Path, tmp_path: Path) -> None:
    right = images = 0
    with open_runner(save(tmp_path / "model.pt")) as runner:
        for label, name in enumerate(COLOURS):
            for path in sorted((folder / "val" / name).glob("*.png")):
                batch = runner.facts.preprocessing.apply(read_image(path))[None]
                right += int(runner.infer(batch)["logits"].argmax()) == label
                images += 1
        (report,) = compare_metrics([runner], read_labelled(folder, None, runner.facts.model), batch=4)
    assert (report.images, report.metric) == (images, "top1")
    assert report.values["top1"] == pytest.approx(right / images)
    assert report.passed


def test_an_artefact_alone_has_its_metric_taken_and_without_labels_nothing_to_be_compared_with(
    folder: Path, tmp_path: Path
) -> None:
    model = save(tmp_path / "model[old].pt")  # no markup
    with pytest.raises(
        UsageError, match=r"model\[old\]\.pt alone in torch has nothing .* or give a data set with --labels"
    ):
        validate([model])
    report = validate([model], labels=folder)
    assert report.pairs == ()
    assert [check.artefact for check in report.independence] == [metric.artefact for metric in report.metrics]
    assert report.metrics[0].images == 18
    shown = CliRunner().invoke(main, ["validate", str(model), "--labels", str(folder)])
    assert shown.exit_code == 0, shown.stderr
    assert f"{report.metrics[0].values['top1']:.4f}" in shown.stdout
    assert shown.stdout.count("model[old].pt") == 2  # that it depends on no batch, and its metric


def test_what_training_leaves_out_is_left_out_and_named_once(folder: Path, tmp_path: Path) -> None:
    broken = folder / "val/green/001.png"
    broken.write_bytes(b"no image")
    result = train(tiny_config(folder, tmp_path / "run", epochs=1))
    assert result.best is not None
    assert result.record is not None
    said: list[str] = []
    with open_runner(result.best) as first, open_runner(result.best) as second:
        data = read_labelled(folder, None, first.facts.model)
        reports = compare_metrics([first, second], data, batch=8, status=said.append)
    assert [report.images for report in reports] == [len(data.val) - 1] * 2
    assert reports[0].values["top1"] == pytest.approx(result.record["val"]["top1"])
    assert len(said) == 1
    assert str(broken) in said[0]


def test_a_detector_s_labels_are_refused_where_nothing_can_measure_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'spt-deploy\[train\]'"):
        read_labelled(tmp_path, None, ModelConfig(BackboneConfig.from_name("spt_micro"), "detect", ("one",)))


def test_a_model_that_knows_less_does_not_pass(folder: Path, tmp_path: Path) -> None:
    trained = train(tiny_config(folder, tmp_path / "run", epochs=3)).best
    assert trained is not None
    with open_runner(trained) as reference, open_runner(save(tmp_path / "random.pt")) as candidate:
        data = read_labelled(folder, None, reference.facts.model)
        known, unknown = compare_metrics([reference, candidate], data, batch=8)
    assert known.passed
    assert unknown.difference < -0.1
    assert not unknown.passed


@pytest.mark.parametrize(
    ("lost", "of", "max_drop", "passes"),
    [
        (1, 100, 0.01, True),
        (10, 1000, 0.01, True),
        (11, 1000, 0.01, False),
        (2, 1000, None, True),
        (3, 1000, None, False),
    ],
)
def test_a_metric_may_lose_just_as_much_as_is_said(lost: int, of: int, max_drop: float | None, passes: bool) -> None:
    """Whatever it was before: differences of the same two counts round to either side of the limit."""
    for right in range(lost, of + 1):
        difference = (right - lost) / of - right / of
        assert MetricReport("it", of, "top1", {}, difference, max_drop).passed is passes, right
    assert not MetricReport("it", of, "top1", {}, float("nan"), max_drop).passed


def test_a_detector_has_the_same_average_precision_in_pytorch_and_onnx_runtime(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data", make_truth(train=2, val=8))
    path = save(tmp_path / "model.pt", "detect", read_data(data).class_names)
    loaded = deployed_checkpoint(path, "per-image")
    onnx.save(to_onnx(loaded.build(), loaded.facts), tmp_path / "model.onnx")
    command = ["validate", str(path), str(tmp_path / "model.onnx"), "--runtime", "onnxruntime", "--labels", str(data)]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    ours, theirs = json.loads(result.stdout)["metrics"]
    assert (ours["images"], ours["metric"]) == (8, "AP")
    assert theirs["values"] == pytest.approx(ours["values"], abs=1e-3)


def test_a_data_set_of_other_classes_is_refused_before_anything_is_compared(folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", classes=("cat", "dog"))
    heard: list[str] = []
    with pytest.raises(InputError, match=r"has the classes blue, green, red and the model cat, dog"):
        validate([path, path], labels=folder, status=heard.append)
    assert not any("comparing" in line for line in heard)


def test_a_format_without_labels_is_bad_usage() -> None:
    result = CliRunner().invoke(main, ["validate", "--format", "coco"])
    assert result.exit_code == UsageError.exit_code
    assert "give both, or neither" in result.stderr
