"""``export`` and ``validate`` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from spt_deploy.cli import main
from spt_deploy.config import PACKINGS, Packing
from spt_deploy.digest import sha256_of
from spt_deploy.errors import InputError, ResultError, UsageError
from spt_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.onnx_file import inlined, read_facts
from spt_deploy.runtimes.torch_runner import TorchRunner
from spt_deploy.workflows import export as export_workflow
from spt_deploy.workflows.artefacts import find_artefact
from spt_deploy.workflows.build_engine import build_engine
from spt_deploy.workflows.export import export
from spt_deploy.workflows.validate import validate
from tests.spt_deploy.model.models import make_model


def _checkpoint(path: Path, size: tuple[int, int] = (64, 64), name: str = "spt_micro") -> Path:
    save_checkpoint(path, make_model(name), Preprocessing.for_task("classify", size))
    return path


def test_export_writes_beside_the_checkpoint_and_says_what_it_came_from(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "best.pt")
    report = export(checkpoint)
    assert report.path == tmp_path / "best.onnx"
    facts = read_facts(report.path)
    assert facts.checkpoint_sha256 == sha256_of(checkpoint)
    assert facts.model.backbone.packing == "per-image"
    assert report.parity is not None
    assert report.parity.passed
    forced = [case.name for case in report.parity.cases if case.free is None]
    assert forced == [f"keeps {what} x{b}" for b in (1, 2, 5) for what in ("nothing", "everything")]


def test_the_image_size_and_packing_asked_for_are_the_file_s(tmp_path: Path) -> None:
    report = export(
        _checkpoint(tmp_path / "a.pt"), tmp_path / "b.onnx", image_size=(40, 72), packing="batch", selection="none"
    )
    assert report.inputs == {"images": ["batch", 3, 40, 72]}
    assert list(report.outputs) == ["logits"]
    facts = read_facts(report.path)
    assert facts.preprocessing.size == (40, 72)
    assert facts.model.backbone.packing == "batch"


def test_a_higher_threshold_keeps_fewer_tokens_and_the_checkpoint_is_compared_at_it(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "best.pt")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    kept = []
    for threshold in (None, 0.05):
        path = tmp_path / f"{threshold}.onnx"
        export(checkpoint, path, threshold=threshold)
        with open_runner(path, "onnxruntime") as runner:
            kept.append(float(runner.infer(images)["select_ratio"].mean()))
    assert read_facts(path).model.backbone.threshold == 0.05
    assert 0 < kept[1] < kept[0] < 1
    assert validate([checkpoint, path], runtimes=["onnxruntime"]).passed
    with pytest.raises(UsageError, match="threshold is 1"):
        export(checkpoint, threshold=1)


def test_a_threshold_at_run_time_is_an_input_and_is_compared_at_two_values(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "best.pt")
    result = CliRunner().invoke(main, ["export", str(checkpoint), "--runtime-threshold", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["inputs"] == {"images": ["batch", 3, 64, 64], "threshold": []}
    assert "random x5 at 0.505" in [case["name"] for case in report["parity"]["cases"]]
    assert read_facts(tmp_path / "best.onnx").runtime_threshold
    assert validate([checkpoint, tmp_path / "best.onnx"], threshold=0.005).passed


def test_a_file_that_takes_bytes_is_compared_with_the_checkpoint_that_takes_numbers(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "best.pt")
    result = CliRunner().invoke(main, ["export", str(checkpoint), "--uint8-input", "--runtime-threshold", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["inputs"] == {"images": ["batch", 64, 64, 3], "threshold": []}
    assert report["parity"]["passed"]
    assert len(report["parity"]["cases"]) == 16
    assert read_facts(tmp_path / "best.onnx").uint8_input
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "best.onnx")])
    assert "RGB bytes, normalised in the graph" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("packing", PACKINGS)
def test_openvino_reads_a_file_of_standard_operators_by_itself(tmp_path: Path, packing: Packing) -> None:
    import openvino

    checkpoint = _checkpoint(tmp_path / "best.pt")
    report = export(checkpoint, packing=packing, inline=True)
    assert report.path == tmp_path / f"best{'.static' * (packing == 'static')}.inline.onnx"
    assert report.parity is not None
    assert [case.name for case in report.parity.cases if case.free is None]  # the file that it is made of was forced
    model = onnx.load(report.path)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    compiled = openvino.Core().compile_model(report.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    said = {output.any_name: value for output, value in compiled(images).items()}
    with TorchRunner(checkpoint, "cpu", packing) as runner:
        for name, value in runner.infer(images).items():
            np.testing.assert_allclose(said[name], value, atol=1e-4, err_msg=name)


def test_a_file_of_standard_operators_is_compared_by_its_answers_and_makes_no_engine(tmp_path: Path) -> None:
    export(_checkpoint(tmp_path / "best.pt"), inline=True)
    path = tmp_path / "best.inline.onnx"
    with pytest.raises(InputError, match="no model was found"):
        find_artefact(tmp_path, ("onnx",))  # it is for other programs
    assert validate([tmp_path / "best.pt", path]).passed
    with pytest.raises(UsageError, match="in standard operators alone, whose selection cannot be forced"):
        validate([path])
    with pytest.raises(UsageError, match=r"has no spt nodes .*; give the file that .* writes without --inline"):
        build_engine(path)


def test_inlining_that_changes_the_answer_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        result = inlined(proto)
        (head,) = (tensor for tensor in result.graph.initializer if tensor.name.endswith("head.fc.bias"))
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) + 1, head.name))
        return result

    monkeypatch.setattr(export_workflow, "inlined", wrong)
    with pytest.raises(ResultError, match="without its functions the file says something else than with them"):
        export(_checkpoint(tmp_path / "best.pt"), inline=True)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_bytes_that_are_normalised_otherwise_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export_workflow.to_onnx

    def wrong(*arguments: object) -> onnx.ModelProto:
        proto = real(*arguments)  # type: ignore[arg-type]
        (offset,) = (tensor for tensor in proto.graph.initializer if tensor.name == "normalise.offset")
        offset.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(offset)[::-1].copy(), offset.name))  # BGR
        return proto

    monkeypatch.setattr(export_workflow, "to_onnx", wrong)
    with pytest.raises(ResultError, match="does not say what"):
        export(_checkpoint(tmp_path / "best.pt"), uint8_input=True)
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_an_input_that_reaches_only_some_blocks_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export_workflow.to_onnx

    def wrong(*arguments: object) -> onnx.ModelProto:
        proto = real(*arguments)  # type: ignore[arg-type]
        last = [node for node in proto.graph.node if node.op_type == "SelectTokens"][-1]
        default = np.asarray(np.log(0.01 / 0.99), dtype=np.float32)  # right as long as nobody gives another
        proto.graph.initializer.append(numpy_helper.from_array(default, "constant_threshold"))
        last.input[2] = "constant_threshold"
        return proto

    monkeypatch.setattr(export_workflow, "to_onnx", wrong)
    with pytest.raises(ResultError, match=r"at 0\.505"):
        export(_checkpoint(tmp_path / "best.pt"), runtime_threshold=True)
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_a_model_that_has_no_threshold_is_refused_as_an_input_before_any_work(tmp_path: Path) -> None:
    swin = _checkpoint(tmp_path / "swin.pt", name="swin_micro")
    result = CliRunner().invoke(main, ["export", str(swin), "--runtime-threshold"])
    assert result.exit_code == 2
    assert "swin_micro has no SPA blocks" in result.stderr
    assert "exporting" not in result.stderr


@pytest.mark.parametrize("backbone", [{"selector": "topk"}, {"spa_stages": ()}])
def test_a_threshold_of_a_model_that_has_none_is_refused_before_any_work(
    tmp_path: Path, backbone: dict[str, object]
) -> None:
    checkpoint = tmp_path / "best.pt"
    save_checkpoint(checkpoint, make_model(**backbone), Preprocessing.for_task("classify", (64, 64)))
    with pytest.raises(UsageError, match=r"best\.pt selects no tokens by a threshold, so that 0\.3 cannot be given"):
        export(checkpoint, threshold=0.3)
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.parametrize(
    ("backbone", "room"), [({"selector": "topk", "keep_ratio": 0.5}, 0.5), ({"spa_stages": ()}, None)]
)
def test_the_room_that_is_reported_is_the_file_s(
    tmp_path: Path, backbone: dict[str, object], room: float | None
) -> None:
    checkpoint = tmp_path / "best.pt"
    model = make_model(depths=(1, 1, 1, 1), **backbone)
    save_checkpoint(checkpoint, model, Preprocessing.for_task("classify", (32, 32)))
    assert export(checkpoint, packing="static", capacity=0.1).capacity == room


def test_validate_at_a_threshold_needs_files_that_take_it(tmp_path: Path) -> None:
    report = export(_checkpoint(tmp_path / "best.pt"))
    with pytest.raises(InputError, match=r"best\.onnx takes no threshold .* export it again with --runtime-threshold"):
        validate([report.checkpoint, report.path], threshold=0.3)


def test_a_file_that_does_not_say_what_the_checkpoint_says_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_workflow.to_onnx

    def wrong(*arguments: object) -> onnx.ModelProto:
        proto = real(*arguments)  # type: ignore[arg-type]
        (tensor,) = [t for t in proto.graph.initializer if t.name.endswith("head.fc.weight")]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return proto

    monkeypatch.setattr(export_workflow, "to_onnx", wrong)
    with pytest.raises(ResultError, match="logits is off by"):
        export(_checkpoint(tmp_path / "best.pt"))
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_an_unknown_packing_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch, per-image, static"):
        export(_checkpoint(tmp_path / "best.pt"), packing="dense")  # type: ignore[arg-type]


def test_spt_t_at_224_is_the_same_in_every_runtime_and_in_polygraphy(tmp_path: Path) -> None:
    report = export(_checkpoint(tmp_path / "spt_t.pt", (224, 224), "spt_t"))
    assert report.parity is not None
    assert max(d.max_absolute for d in report.parity.differences.values()) < 1e-4

    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    from spt_deploy.runtimes.openvino_runner import compile_model

    compiled = compile_model(onnx.load(report.path), report.path.name)
    model = load_checkpoint(report.checkpoint).build()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images).named()
    found = compiled({"images": images.numpy()})
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4, rtol=1e-4, err_msg=name)

    command = [str(Path(sys.executable).with_name("polygraphy")), "run", str(report.path), "--onnxrt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_validate_compares_every_runtime_on_the_user_s_images_and_prints_json(tmp_path: Path) -> None:
    import cv2

    export(_checkpoint(tmp_path / "best.pt"))
    data = tmp_path / "images"
    data.mkdir()
    for i in range(3):
        cv2.imwrite(str(data / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    (data / "3.png").write_bytes(b"no image")
    result = CliRunner().invoke(
        main, ["validate", str(tmp_path / "best.pt"), str(tmp_path / "best.onnx"), "--data", str(data), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["passed"]
    assert [note.split()[:3] for note in report["notes"]] == [["left", "out:", str(data / "3.png")]]  # once
    assert [pair["candidate"] for pair in report["pairs"]] == [
        "best.onnx (onnxruntime cpu fp32)",
        "best.onnx (openvino cpu fp32)",
    ]
    assert "images 1-3" in [case["name"] for case in report["pairs"][0]["cases"]]
    assert len(report["batch_independence"]) == 3
    assert {block["block"] for block in report["pairs"][0]["selection"]} == {"3.1", "3.2", "4.1", "4.2"}


def test_validate_ends_with_1_when_something_differs(tmp_path: Path) -> None:
    report = export(_checkpoint(tmp_path / "best.pt"))
    proto = onnx.load(report.path)
    (tensor,) = [t for t in proto.graph.initializer if t.name.endswith("head.fc.bias")]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
    onnx.save(proto, report.path)
    result = CliRunner().invoke(
        main, ["validate", str(report.checkpoint), str(report.path), "--runtime", "onnxruntime"]
    )
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "parity failed for best.onnx" in result.stderr


def test_validate_of_one_checkpoint_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a second artefact"):
        validate([_checkpoint(tmp_path / "best.pt")])


def test_commands_without_arguments_take_what_is_obvious_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _checkpoint(tmp_path / "runs" / "first" / "best.pt")
    exported = CliRunner().invoke(main, ["export"])
    assert exported.exit_code == 0, exported.stderr
    assert "taking runs/first/best.pt" in exported.stderr
    validated = CliRunner().invoke(main, ["validate", "--runtime", "onnxruntime"])
    assert validated.exit_code == 0, validated.stderr
    assert "taking runs/first/best.onnx" in validated.stderr
    assert "taking runs/first/best.pt as the reference" in validated.stderr
