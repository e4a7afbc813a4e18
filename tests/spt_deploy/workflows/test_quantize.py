"""``export --int8``: the accuracy of a file decides whether it is written."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.cli.export import _quantized
from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import InputError, ResultError, RuntimeMissingError, UsageError
from spt_deploy.images import find_images, read_image
from spt_deploy.model.blocks import Mlp
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.onnx_file import load_onnx, read_facts
from spt_deploy.workflows import quantize
from spt_deploy.workflows.artefacts import find_artefact
from spt_deploy.workflows.build_engine import build_engine
from spt_deploy.workflows.export import export
from spt_deploy.workflows.quantize import QuantizeData, QuantizeReport, write_int8
from spt_deploy.workflows.task_metric import MetricReport
from spt_deploy.workflows.validate import validate
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import randomise

pytest.importorskip("openvino", reason="an extra")

SIZE = (64, 64)
CLASSES = ("left", "right")


def make_classifier(images: list[Path]) -> SptModel:
    """Of random weights, whose answers on the images are as often the one as the other."""
    model = SptModel(ModelConfig(BackboneConfig.from_name("spt_micro"), "classify", CLASSES)).eval()
    randomise(model)
    preprocessing = Preprocessing.for_task("classify", SIZE)
    batch = torch.from_numpy(np.stack([preprocessing.apply(read_image(path)) for path in images]))
    with torch.no_grad():
        logits = model(batch).task["logits"]
        model.head.fc.bias -= logits.median(0).values
    return model


def with_outliers(model: SptModel) -> SptModel:
    """The same function, whose every MLP sees one channel ten thousand times as large as the others."""
    large = 1e4
    with torch.no_grad():
        for block in model.modules():
            if isinstance(getattr(block, "mlp", None), Mlp):
                block.norm2.weight[0] *= large
                block.norm2.bias[0] *= large
                block.mlp.fc1.weight[:, 0] /= large
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light ones in pairs: of one kind, some are so near the edge that int8 may answer either way."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(24):
        coarse = random.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(128 * (index // 2 % 2))
        assert cv2.imwrite(str(folder / f"{index:02}.png"), cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture(scope="module")
def sound(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make_classifier(find_images(photos))
    return make_exported(tmp_path_factory.mktemp("sound"), SIZE, selection="all", model=model)


@pytest.fixture(scope="module")
def brittle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = with_outliers(make_classifier(find_images(photos)))
    return make_exported(tmp_path_factory.mktemp("brittle"), SIZE, selection="all", model=model)


@pytest.fixture(scope="module")
def labelled(photos: Path, sound: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images again; the class of each is what the float32 file says."""
    folder = tmp_path_factory.mktemp("labelled")
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
    with open_runner(sound.onnx, "onnxruntime", "cpu") as runner:
        for path in find_images(photos):
            logits = runner.infer(runner.facts.preprocessing.apply(read_image(path))[None])["logits"]
            for split in ("train", "val"):
                (folder / split / CLASSES[int(logits.argmax())] / path.name).write_bytes(path.read_bytes())
    return folder


def quantise(made: Exported, output: Path, data: Path, labels: Path | None = None, **options: Any) -> QuantizeReport:
    return write_int8(made.onnx, output, QuantizeData.read(data, labels, read_facts(made.onnx)), **options)


def test_a_file_that_answers_as_before_is_written_without_labels_and_says_so(
    sound: Exported, photos: Path, tmp_path: Path
) -> None:
    report = quantise(sound, tmp_path / "a.int8.onnx", photos)
    assert report.passed
    assert report.metrics == ()
    assert report.drop is None
    assert (report.calibrated, report.compared) == (12, 12)  # each image serves for one of the two
    assert report.agreed.counted == 12
    assert report.agreed.share >= 0.95
    assert not report.to_dict()["accuracy_checked"]
    blocks = read_facts(sound.onnx).model.backbone.spa_blocks
    assert tuple(report.differing) == blocks
    assert all(0 <= share < 0.2 for share in report.differing.values())
    outputs = [output.name for output in load_onnx(tmp_path / "a.int8.onnx").graph.output]
    assert outputs == ["logits", "select_ratio", "selection"]


def test_an_image_that_cannot_be_read_is_left_out_and_named_once(
    sound: Exported, labelled: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    bad = find_images(data / "train")[0], find_images(data / "val")[0]
    for path in bad:
        path.write_bytes(b"no image")
    heard: list[str] = []
    report = quantise(sound, tmp_path / "a.int8.onnx", data, status=heard.append)
    assert (report.calibrated, report.compared, report.metrics[1].images) == (23, 23, 23)
    assert [said.split()[2] for said in heard if said.startswith("left out: ")] == [str(path) for path in bad]


def test_a_data_set_is_its_own_labels_and_the_drop_is_measured(
    brittle: Exported, labelled: Path, tmp_path: Path
) -> None:
    report = quantise(brittle, tmp_path / "a.onnx", labelled, max_drop=1.0, selection="none")
    before, after = report.metrics
    assert (before.metric, before.images, before.values["top1"]) == ("top1", 24, 1.0)
    assert report.drop == pytest.approx(1.0 - after.values["top1"])
    assert report.drop > 0.2
    assert [output.name for output in load_onnx(tmp_path / "a.onnx").graph.output] == ["logits"]


def test_a_model_that_8_bits_cannot_hold_is_refused_with_and_without_labels(
    brittle: Exported, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.onnx"
    with pytest.raises(
        ResultError, match=r"in int8 top1 drops by [01]\.\d+, from 1\.0000 to .*max-drop is 0\.01"
    ) as refused:
        quantise(brittle, output, photos, labelled)
    assert refused.value.exit_code == 1
    with pytest.raises(ResultError, match="of the images with the same top class are those of float32"):
        quantise(brittle, output, photos)
    assert list(tmp_path.iterdir()) == []


def test_a_detector_that_finds_nothing_cannot_be_judged(
    sound: Exported, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "agreement", lambda *given: quantize.Agreement(0, 0))
    with pytest.raises(ResultError, match=r"there are no labels, and .* was written: give images in which"):
        quantise(sound, tmp_path / "a.onnx", photos)


@pytest.fixture(scope="module")
def written(sound: Exported, photos: Path, labelled: Path) -> Path:
    """By the command."""
    arguments = ["export", str(sound.checkpoint), "--int8", "--data", str(photos), "--labels", str(labelled)]
    result = CliRunner().invoke(main, [*arguments, "--max-drop", "0.2"])
    assert result.exit_code == 0, result.stderr
    assert "top1 1.0000 in float32, " in result.stdout
    assert "and a drop of 0.2 is allowed (24 labelled images)" in result.stdout
    assert "of the tokens are selected otherwise, at most " in result.stdout
    return sound.checkpoint.with_suffix(".int8.onnx")


def test_the_command_writes_a_smaller_file_that_is_taken_only_by_name(sound: Exported, written: Path) -> None:
    assert read_facts(written).precision == "int8"
    assert written.stat().st_size < 0.5 * sound.onnx.stat().st_size
    assert find_artefact(sound.onnx.parent, ("onnx",)).path == sound.onnx
    onnx.checker.check_model(load_onnx(written), full_check=True)
    result = CliRunner().invoke(main, ["info", str(written)])
    assert result.exit_code == 0, result.stderr
    assert "int8" in result.stdout


def test_every_runtime_takes_it_and_it_is_called_by_its_precision(written: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)
    with open_runner(written, "openvino") as first, open_runner(written, "onnxruntime", "cpu") as second:
        assert (first.precision, second.precision) == ("int8", "int8")
        np.testing.assert_allclose(first.infer(images)["logits"], second.infer(images)["logits"], atol=0.2)
    assert open_runner(written, "openvino", precision="fp32").precision == "int8"


def test_its_other_part_computes_in_bfloat16_where_the_processor_can(written: Path) -> None:
    from spt_deploy.runtimes.openvino_runner import openvino_core

    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)
    with open_runner(written, "openvino") as exact, open_runner(written, "openvino", precision="bf16") as fast:
        assert fast.precision == "int8+bf16"
        assert fast.name == "openvino cpu int8+bf16"
        difference = np.abs(exact.infer(images)["logits"] - fast.infer(images)["logits"]).max()
    assert 0 < difference < 0.2


def test_validate_holds_it_to_its_metric_and_not_to_every_element(
    sound: Exported, written: Path, labelled: Path
) -> None:
    report = validate([sound.checkpoint, written], runtimes=["openvino"], labels=labelled)
    assert [case.passed for case in report.pairs[0].cases] == [True] * len(report.pairs[0].cases)
    assert any("8 bits" in case.verdict for case in report.pairs[0].cases)
    assert [metric.max_drop for metric in report.metrics] == [None, 0.01]
    with pytest.raises(UsageError, match="is an int8 file, whose selection cannot be forced"):
        validate([written, sound.onnx], runtimes=["openvino"])


def test_no_engine_is_built_of_it(written: Path) -> None:
    with pytest.raises(UsageError, match=r"is in int8, for CPUs, .* without --int8"):
        build_engine(written)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--int8"], "name a folder of them with --data"),
        (["--labels", "x"], "add --int8"),
        (["--max-drop", "0.1"], "add --int8"),
        (["--int8", "--data", "x", "--max-drop", "2"], "max-drop is 2; expected a share"),
        (["--int8", "--data", "x"], "there is no folder x; give a folder of images with --data"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(sound: Exported, options: list[str], match: str) -> None:
    result = CliRunner().invoke(main, ["export", str(sound.checkpoint), *options])
    assert (result.exit_code, match in result.stderr) == (2, True), result.stderr


def test_without_onnx_runtime_it_is_refused_before_any_work(
    sound: Exported, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    heard: list[str] = []
    with pytest.raises(RuntimeMissingError, match="pip install onnxruntime"):
        export(sound.checkpoint, int8=True, data=photos, status=heard.append)
    assert heard == []


def test_labels_that_cannot_be_used_are_named_with_the_reason(
    sound: Exported, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    facts = read_facts(sound.onnx)
    assert QuantizeData.read(photos, None, facts).why_unlabelled == ""  # there are none
    assert QuantizeData.read(labelled, None, facts).why_unlabelled == ""
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    for split in ("train", "val"):
        (data / split / "left").rename(data / split / "up")
    assert "has the classes right, up" in QuantizeData.read(data, None, facts).why_unlabelled
    assert QuantizeData.read(data, labelled, facts).why_unlabelled == ""  # others are there
    heard: list[str] = []
    assert quantise(sound, tmp_path / "a.onnx", data, status=heard.append).metrics == ()
    assert heard[0].startswith(f"the labels of {data} cannot be used: {data} has the classes right, up")
    shutil.rmtree(data / "val")
    assert "val" in QuantizeData.read(data, None, facts).why_unlabelled


def test_a_drop_of_a_metric_that_nothing_is_known_of_is_refused(sound: Exported, photos: Path) -> None:
    with pytest.raises(UsageError, match=r"max-drop is 0\.1 of a metric, and .* has no labels .* with --labels"):
        export(sound.checkpoint, int8=True, data=photos, max_drop=0.1)


def test_where_nothing_is_found_no_answer_is_said_to_differ() -> None:
    found = {"top1": 0.0}
    metrics = tuple(MetricReport(name, 4, "top1", found, 0.0, drop) for name, drop in (("a", None), ("b", 0.01)))
    report = QuantizeReport("openvino", 4, 50, {}, metrics, 0.01, 4, quantize.Agreement(), {})
    assert report.passed
    assert _quantized(report)[-1] == "no answers, so that none can be compared (4 images, openvino)"


def test_data_that_is_not_there_is_named(sound: Exported, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder nowhere"):
        quantise(sound, tmp_path / "a.onnx", Path("nowhere"))
    with pytest.raises(InputError, match="is a file and no folder; give a folder of images"):
        quantise(sound, tmp_path / "a.onnx", sound.onnx)
    with pytest.raises(InputError, match="is no data set of a known format"):
        quantise(sound, tmp_path / "a.onnx", photos, photos)
