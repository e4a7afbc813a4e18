"""infer at a threshold, and infer that holds a rate: on real files, with targets that no machine's speed decides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from spt_deploy.cli import main
from spt_deploy.errors import InputError, UsageError
from spt_deploy.facts import METADATA_KEY
from spt_deploy.runtimes.onnx_file import load_onnx, read_facts
from spt_deploy.streaming.budget import parse_threshold_range
from spt_deploy.streaming.resume import BEGUN
from spt_deploy.workflows.infer import infer
from tests.exported import Exported, make_exported
from tests.spt_deploy.streaming.support import ColourRunner, facts_of, lines_of, write_video

pytestmark = pytest.mark.usefixtures("inside")

SIZE = (64, 64)
FRAMES = 40
IMPOSSIBLE, EASY = "1e9", "1e-6"  # frames a second


@pytest.fixture(scope="module")
def dial(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A detector whose threshold is an input."""
    return make_exported(tmp_path_factory.mktemp("dial"), SIZE, task="detect", runtime_threshold=True)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", range(0, 40 * FRAMES, 40))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["infer", *map(str, arguments), "--no-video", "--out", "out"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_the_threshold_rises_while_the_target_cannot_be_held(
    dial: Exported, video: Path, inside: Path, runtime: str
) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime, reason="an extra")
    model = dial.checkpoint if runtime == "torch" else dial.onnx
    result = call(video, "--model", model, "--runtime", runtime, "--batch", "4", "--target-fps", IMPOSSIBLE, "--json")
    assert result.exit_code == 0, result.stderr
    thresholds = [line["threshold"] for line in lines_of(inside / "out")]
    assert len(thresholds) == FRAMES
    assert thresholds[:8] == [0.01] * 8  # the first batch is no measurement
    batches = thresholds[4::4]
    assert batches == sorted(batches)
    assert thresholds[-1] > 0.01
    budget = json.loads(result.stdout)["budget"]
    assert (budget["least"], budget["largest"]) == (0.01, thresholds[-1])
    assert budget["mean"] == pytest.approx(sum(thresholds) / FRAMES, rel=1e-2)
    assert budget["held"] is False


def test_at_its_upper_bound_it_says_that_nothing_holds_the_target(dial: Exported, video: Path, inside: Path) -> None:
    # A range so narrow that a batch of any length crosses it.
    arguments = ("--model", dial.onnx, "--batch", "1", "--target-fps", IMPOSSIBLE, "--threshold-range")
    result = call(video, *arguments, "0.01:0.010001")
    assert result.exit_code == 0, result.stderr
    assert "no threshold up to 0.010001 holds 1000000000 frames/s: the model made " in result.stdout
    budget = json.loads((inside / "out/summary.json").read_text(encoding="utf-8"))["budget"]
    assert budget["share_at_highest"] == pytest.approx((FRAMES - 2) / FRAMES)


def test_a_target_that_is_easy_changes_nothing(dial: Exported, video: Path, inside: Path) -> None:
    result = call(video, "--model", dial.onnx, "--target-fps", EASY)
    assert result.exit_code == 0, result.stderr
    assert "1e-06 frames/s held: the model made " in result.stdout
    held = lines_of(inside / "out")
    assert {line.pop("threshold") for line in held} == {0.01}
    assert call(video, "--model", dial.onnx).exit_code == 0
    assert lines_of(inside / "out") == held  # which have no threshold, for none was given
    assert json.loads((inside / "out/summary.json").read_text(encoding="utf-8"))["budget"] is None


def test_a_threshold_that_is_given_is_every_frame_s(dial: Exported, video: Path, inside: Path) -> None:
    kept = {}
    for threshold in ("0.002", "0.02"):
        result = call(video, "--model", dial.onnx, "--threshold", threshold, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["threshold"] == float(threshold)
        assert {line["threshold"] for line in lines_of(inside / "out")} == {float(threshold)}
        kept[threshold] = json.loads(result.stdout)["mean_select_ratio"]
    assert kept["0.002"] > kept["0.02"]


@pytest.mark.parametrize("option", ["--threshold", "--target-fps"])
def test_a_file_without_the_input_is_refused_before_the_run(
    dial: Exported, video: Path, inside: Path, option: str
) -> None:
    fixed = inside / "fixed.onnx"
    proto = load_onnx(dial.onnx)
    facts = replace(read_facts(dial.onnx), runtime_threshold=False)
    onnx.helper.set_model_props(proto, {METADATA_KEY: facts.to_json()})
    onnx.save(proto, fixed)
    result = call(video, "--model", fixed, option, "0.5")
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("export it again with --runtime-threshold")
    assert not (inside / "out").exists()


def test_a_runner_that_takes_no_threshold_says_so_from_python_too(video: Path) -> None:
    with pytest.raises(InputError, match="takes no threshold at run time"):
        infer([video], ColourRunner(), target_fps=30)


@pytest.mark.parametrize(("own", "example"), [(0.9, "0.9:0.95"), (0.95, "0.95:0.975")])
def test_a_model_whose_threshold_is_above_the_default_bound_is_to_be_given_a_range(
    video: Path, own: float, example: str
) -> None:
    facts = facts_of()
    model = replace(facts.model, backbone=replace(facts.model.backbone, threshold=own))
    runner = ColourRunner(replace(facts, model=model))
    with pytest.raises(UsageError, match=rf"own threshold is {own}, .* --threshold-range {example}$"):
        infer([video], runner, target_fps=30)
    with pytest.raises(InputError, match="takes no threshold"):  # the range that it named is one
        infer([video], runner, target_fps=30, threshold_range=parse_threshold_range(example))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--threshold", "0.3", "--target-fps", "30"), "exclude each other"),
        (("--threshold-range", "0.01:0.9"), "give --target-fps with it"),
        (("--target-fps", "30", "--threshold-range", "0.9:0.1"), "0.9 to 0.1; expected two numbers between 0 and 1"),
        (("--target-fps", "30", "--threshold-range", "half"), "'half'; expected LOW:HIGH"),
        (("--target-fps", "0"), "target-fps is 0; expected a positive number"),
        (("--threshold", "1.5"), "threshold is 1.5; expected a number between 0 and 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(
    dial: Exported, video: Path, inside: Path, arguments: tuple[str, ...], match: str
) -> None:
    result = call(video, "--model", dial.onnx, *arguments)
    assert result.exit_code == 2
    assert match in result.stderr
    assert not (inside / "out").exists()


def test_a_run_is_resumed_with_the_range_that_it_was_begun_with(dial: Exported, video: Path, inside: Path) -> None:
    note, notes = inside / "out" / BEGUN, []
    options: dict[str, Any] = {"runtime": "torch", "out": "out", "video": False, "target_fps": 1e-6}
    infer(
        [video],
        dial.checkpoint,
        threshold_range=(0.01, 0.5),
        max_frames=2,
        on_progress=lambda now: notes.append(note.read_bytes()),
        **options,
    )
    note.write_bytes(notes[0])  # as a run that was stopped leaves it
    with pytest.raises(UsageError, match=r"begun with threshold_range 0\.01:0\.5, not 0\.01:0\.9"):
        infer([video], dial.checkpoint, threshold_range=(0.01, 0.9), resume=True, **options)
    assert infer([video], dial.checkpoint, threshold_range=(0.01, 0.5), resume=True, **options).summary.resumed == 2
