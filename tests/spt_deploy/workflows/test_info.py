from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

from spt_deploy import __version__
from spt_deploy.cli import main
from spt_deploy.config import Task
from spt_deploy.digest import sha256_of
from spt_deploy.errors import ArtefactError, InputError, UsageError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from spt_deploy.model.complexity import complexity, kept_tokens
from spt_deploy.preprocess import Preprocessing
from spt_deploy.workflows.info import info
from tests.spt_deploy.model.models import CLASSES, make_model

SIZE = (96, 64)
BLOCKS = ("3.1", "3.2", "4.1", "4.2")


def write_checkpoint(path: Path, task: Task = "classify", training: dict[str, Any] | None = None, **model: Any) -> Path:
    save_checkpoint(path, make_model(task=task, **model), Preprocessing.for_task(task, SIZE), training)
    return path


def write_onnx(path: Path, metadata: dict[str, str]) -> Path:
    """An ONNX file of one node."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    proto = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("task", ["classify", "multilabel", "detect"])
def test_of_a_checkpoint_it_says_what_the_file_says_and_its_hash(tmp_path: Path, task: Task, suffix: str) -> None:
    path = write_checkpoint(tmp_path / f"ckpt{suffix}", task)
    found = info(path)
    saved = load_checkpoint(path).facts
    assert (found.path, found.kind, found.why) == (path, "checkpoint", "")
    assert (found.facts.model, found.facts.preprocessing) == (saved.model, saved.preprocessing)
    assert found.facts.checkpoint_sha256 == sha256_of(path)
    assert found.parameters == sum(p.numel() for p in make_model(task=task).parameters())
    assert found.runtimes == {"torch": True}


def test_of_an_onnx_file_it_says_what_the_metadata_says(tmp_path: Path) -> None:
    facts = ModelFacts(make_model().config, Preprocessing(SIZE), "0.0.9", "ab" * 32)
    found = info(write_onnx(tmp_path / "model.onnx", {METADATA_KEY: facts.to_json()}))
    assert found.kind == "onnx"
    assert found.facts == facts
    assert set(found.runtimes) >= {"onnxruntime", "openvino"}


def test_work_is_counted_with_everything_kept_and_at_the_ratio_asked_for(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt")
    config = make_model().config
    found = info(path, select_ratio=0.25, image_size=(224, 224))
    expected = [
        complexity(config, (224, 224), kept_tokens(config.backbone, (224, 224), ratio)) for ratio in (1.0, 0.25)
    ]
    assert [work.cost for work in found.work] == expected
    assert [work.select_ratio for work in found.work] == [dict.fromkeys(BLOCKS, ratio) for ratio in (1.0, 0.25)]
    swin = make_model("swin_micro").config
    assert found.swin_macs == complexity(swin, (224, 224)).total.macs
    assert [work.what for work in info(path).work] == ["all kept"]
    assert info(path).image_size == SIZE


RATIOS = dict(zip(BLOCKS, (0.5, 0.25, 0.75, 1.0), strict=True))


@pytest.mark.parametrize(
    "training",
    [
        {"epoch": 3, "select_ratio": RATIOS},
        {"history": [{"val": {"select_ratio": dict.fromkeys(BLOCKS, 0.9)}}, {"val": {"select_ratio": RATIOS}}]},
    ],
)
def test_work_is_counted_as_training_measured_where_the_checkpoint_says(tmp_path: Path, training: Any) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", training=training)
    found = info(path)
    assert found.work[1].what == "kept as measured"
    assert found.work[1].select_ratio == RATIOS
    config = make_model().config
    assert found.work[1].cost == complexity(config, SIZE, kept_tokens(config.backbone, SIZE, list(RATIOS.values())))
    assert info(path, select_ratio=0.1).work[1].what == "10 % kept"


@pytest.mark.parametrize(
    "training",
    [
        {"history": []},
        {"select_ratio": {"3.1": 0.5}},
        {"select_ratio": "much"},
        {"select_ratio": RATIOS | {"3.1": 1.5}},
        {"select_ratio": RATIOS | {"3.1": float("nan")}},
    ],
)
def test_training_that_does_not_say_is_no_error(tmp_path: Path, training: Any) -> None:
    assert len(info(write_checkpoint(tmp_path / "ckpt.pt", training=training)).work) == 1


def test_a_plain_swin_has_no_selection_and_topk_has_its_ratio_always(tmp_path: Path) -> None:
    swin = info(write_checkpoint(tmp_path / "swin.pt", name="swin_micro"), select_ratio=0.5)
    assert [work.what for work in swin.work] == ["no selection"]
    assert swin.work[0].cost.total.macs == swin.swin_macs
    topk = info(write_checkpoint(tmp_path / "topk.pt", selector="topk", keep_ratio=0.3))
    assert topk.work[1].what == "30 % kept, always"


def test_of_a_static_file_the_work_is_that_of_its_room(tmp_path: Path) -> None:
    model = make_model(packing="static", capacity=0.1)
    facts = ModelFacts(model.config, Preprocessing((256, 256)), "0.0.9", "ab" * 32)
    path = write_onnx(tmp_path / "model.onnx", {METADATA_KEY: facts.to_json()})
    assert len({work.cost.total.macs for work in info(path, select_ratio=0.02).work}) == 1
    result = CliRunner().invoke(main, ["info", str(path)])
    assert "packing static, all of its room for 10% computed" in result.stdout


def test_without_a_name_it_takes_the_newest_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no model was named"):
        info()
    write_checkpoint(tmp_path / "ckpt.pt")
    assert info().why.startswith("taking ckpt.pt")


def test_what_is_no_artefact_of_ours_is_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "foreign.onnx", {})
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:20])
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "readme.md").write_text("hello")
    write_onnx(tmp_path / "broken.onnx", {METADATA_KEY: "{"})
    for name, message in {
        "foreign.onnx": "did not write",
        "cut.onnx": "no ONNX file or is cut short",
        "text.onnx": "no ONNX file or is cut short",
        "broken.onnx": "no JSON",
        "readme.md": "no model by its name",
    }.items():
        with pytest.raises(ArtefactError, match=message) as caught:
            info(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_damaged(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt")
    content = torch.load(path, weights_only=True)
    del content["weights"]["head.fc.weight"]
    torch.save(content, path)
    with pytest.raises(ArtefactError, match=r"holds \d+ parameters, and spt_micro has \d+; the checkpoint is damaged"):
        info(path)


@pytest.mark.parametrize("arguments", [{"select_ratio": 1.5}, {"image_size": (10, 64)}])
def test_ratios_and_sizes_out_of_range_are_refused(tmp_path: Path, arguments: Any) -> None:
    with pytest.raises(UsageError):
        info(write_checkpoint(tmp_path / "ckpt.pt"), **arguments)


def test_the_command_prints_a_table_for_people(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt")
    result = CliRunner().invoke(main, ["info", str(path), "--ratio", "0.25"])
    assert result.exit_code == 0, result.output
    for text in (
        str(path),
        "spt_micro",
        "apple, pear, plum, quince, rowan",
        "96 x 64 pixels, resize, RGB",
        f"spt-deploy {__version__}",
        sha256_of(path)[:16],
        "25 % kept",
        "less work than Swin",
    ):
        assert text in result.stdout


def test_the_command_prints_one_json_document(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", "detect")
    result = CliRunner().invoke(main, ["info", str(path), "--json", "--ratio", "0.5", "--imgsz", "64"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["kind"] == "checkpoint"
    assert document["model"]["task"] == "detect"
    assert document["model"]["class_names"] == list(CLASSES)
    assert document["preprocessing"]["size"] == list(SIZE)
    assert document["checkpoint_sha256"] == sha256_of(path)
    assert document["image_size"] == [64, 64]
    for work in document["work"]:
        assert work["macs"] == sum(component["macs"] for component in work["components"])
    assert document["work"][1]["select_ratio"] == dict.fromkeys(BLOCKS, 0.5)


@pytest.mark.parametrize("arguments", [["--ratio", "2"], ["--imgsz", "10"], ["--imgsz", "big"]])
def test_the_command_ends_with_2_when_an_argument_cannot_be_meant(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["info", str(write_checkpoint(tmp_path / "ckpt.pt")), *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
