"""What infer makes beside lines and videos: crops, the selection of one block, overflow, the share of kept tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.images import read_image
from spt_deploy.streaming import outputs
from spt_deploy.streaming.pipeline import Progress
from spt_deploy.workflows import infer as workflow
from spt_deploy.workflows.infer import infer
from tests.exported import make_exported
from tests.spt_deploy.streaming.support import (
    ColourRunner,
    facts_of,
    files_in,
    lines_of,
    write_video,
)

pytestmark = pytest.mark.usefixtures("inside")

UNEVEN = [0, 40, 55, 130, 131, 400, 520, 1000, 1033]


def test_crops_are_written_without_a_video_one_a_detection(inside: Path) -> None:
    write_video(inside / "v.mp4", UNEVEN)
    report = infer(["v.mp4"], ColourRunner(facts_of("detect")), out="out", video=False, save_crops=True)
    names = {path.name for path in report.files}
    assert names == {"predictions.jsonl", "crops", "summary.json"}
    expected = [f"crops/{name}/v-{frame:06}-1.jpg" for name in ("green", "red") for frame in range(len(UNEVEN))]
    assert files_in(inside / "out") == [*expected, "predictions.jsonl", "summary.json"]


def test_what_an_earlier_run_wrote_and_this_one_does_not_goes_and_nothing_else(inside: Path) -> None:
    for name in ("v", "w"):
        write_video(inside / f"{name}.mp4", UNEVEN)
    runner, formats = ColourRunner(facts_of("detect")), ("csv", "coco")
    infer(["v.mp4", "w.mp4"], runner, out="out", formats=formats, save_crops=True)
    for name in ("mine.annotated.mp4", "mine.csv", "crops/mine.jpg"):
        (inside / "out" / name).touch()
    infer(["v.mp4"], runner, out="out", max_frames=3)
    mine = ["crops/mine.jpg", "mine.annotated.mp4", "mine.csv"]
    assert files_in(inside / "out") == sorted([*mine, "annotated.mp4", "predictions.jsonl", "summary.json"])
    infer(["v.mp4"], runner, out="out", video=False)
    assert files_in(inside / "out") == sorted([*mine, "predictions.jsonl", "summary.json"])


@pytest.mark.parametrize(
    ("source", "video"),
    [
        ("out/annotated", True),
        ("out/annotated/below/p.png", True),
        ("out/annotated.mp4", True),
        ("out/annotated-2.mp4", False),
        ("out/v.annotated.mp4", False),
        ("out/crops/red/v-000000-1.jpg", False),
        ("link/annotated", True),
    ],
)
def test_a_source_that_the_results_would_replace_or_remove_is_refused(inside: Path, source: str, video: bool) -> None:
    (inside / "out").mkdir()
    (inside / "link").symlink_to("out")
    path = inside / source
    if path.suffix == ".mp4":
        write_video(path, UNEVEN)
    else:
        path = path if path.suffix else path / "p.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    before, files = path.read_bytes(), files_in(inside / "out")
    with pytest.raises(UsageError, match=r"would replace or remove it; choose another --out"):
        infer([source], ColourRunner(), out="out", video=video)
    assert (path.read_bytes(), files_in(inside / "out")) == (before, files)


@pytest.mark.parametrize("source", ["out/photos", "out/annotated", "out/crops", "out/mine.mp4"])
def test_a_source_beside_the_results_is_taken(inside: Path, source: str) -> None:
    path = inside / source
    if path.suffix == ".mp4":
        path.parent.mkdir()
        write_video(path, UNEVEN)
    else:
        path.mkdir(parents=True)
        cv2.imwrite(str(path / "p.png"), np.zeros((48, 64, 3), np.uint8))
    files = files_in(inside / "out")
    infer([source], ColourRunner(), out="out", video=False)
    assert files_in(inside / "out") == sorted([*files, "predictions.jsonl", "summary.json"])


def test_a_run_that_is_resumed_writes_the_formats_anew_that_are_there(inside: Path) -> None:
    write_video(inside / "v.mp4", UNEVEN)
    runner = ColourRunner(facts_of("detect"))
    infer(["v.mp4"], runner, out="out", video=False, max_frames=3, formats=["csv", "coco"], save_crops=True)
    before = files_in(inside / "out")
    report = infer(["v.mp4"], runner, out="out", video=False, resume=True)
    assert {"predictions.csv", "predictions.coco.json"} <= {path.name for path in report.files}
    assert len((inside / "out/predictions.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * len(UNEVEN)
    assert files_in(inside / "out") == before


def test_a_run_that_is_resumed_names_what_it_wrote_before_and_its_successor_removes_that(inside: Path) -> None:
    for name in ("v", "w"):
        write_video(inside / f"{name}.mp4", UNEVEN)
    runner = ColourRunner(facts_of("detect"))
    before = infer(["v.mp4", "w.mp4"], runner, out="out", max_frames=3, save_crops=True)
    report = infer(["v.mp4", "w.mp4"], runner, out="out", max_frames=3, resume=True)
    assert {path.name for path in report.files} >= {"v.annotated.mp4", "w.annotated.mp4", "crops"}
    assert set(report.files) == set(before.files)
    infer(["v.mp4"], runner, out="out")
    assert files_in(inside / "out") == ["annotated.mp4", "predictions.jsonl", "summary.json"]


def test_a_window_that_cannot_open_leaves_nothing_behind(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeMissingError("no window can be opened")

    write_video(inside / "v.mp4", [0, 40])
    monkeypatch.setattr(workflow, "check_display", lambda: None)
    monkeypatch.setattr(outputs, "Window", refuse)
    with pytest.raises(RuntimeMissingError, match="no window can be opened"):
        infer(["v.mp4"], ColourRunner(), out="out", show=True)
    assert [path.name for path in inside.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"formats": ["coco"]}, "this model's task is classify; use --format csv"),
        ({"save_crops": True}, "crops are the boxes of a detector"),
        ({"overlay": ["selection:9.9"]}, r"the SPA block '9.9'; the model's are 3.1, 3.2, 4.1, 4.2"),
        ({"overlay": ["selection:3.2"]}, r"does not say what its block 3.2 kept; export it with --selection all"),
    ],
)
def test_what_the_model_cannot_give_is_refused_before_anything_is_run(
    arguments: dict[str, Any], sentence: str, inside: Path
) -> None:
    write_video(inside / "v.mp4", [0, 40])
    runner = ColourRunner()
    with pytest.raises((UsageError, InputError), match=sentence):
        infer(["v.mp4"], runner, out="out", **arguments)
    assert runner.batches == []
    assert not (inside / "out").exists()


def test_the_selection_alone_of_a_file_that_does_not_say_it_is_refused(inside: Path) -> None:
    made = make_exported(inside / "made", (64, 64), selection="none")
    cv2.imwrite(str(inside / "x.png"), np.zeros((64, 64, 3), np.uint8))
    options: dict[str, Any] = {"runtime": "onnxruntime", "device": "cpu", "out": "out"}
    with pytest.raises(InputError, match=r"does not say what its blocks kept, and overlay is selection; export it"):
        infer(["x.png"], made.onnx, overlay=["selection"], **options)
    assert not (inside / "out").exists()
    infer(["x.png"], made.onnx, **options)  # the classes are drawn


def test_a_size_of_bare_frames_without_standard_input_is_refused(inside: Path) -> None:
    write_video(inside / "v.mp4", [0, 40])
    with pytest.raises(UsageError, match="no source is -; name it, or leave raw out"):
        infer(["v.mp4"], ColourRunner(), raw=(48, 64))


def test_the_selection_of_one_block_is_drawn_alike_from_a_checkpoint_and_from_a_file_that_says_it(inside: Path) -> None:
    made = make_exported(inside / "made", (96, 96), selection="all")
    random = np.random.default_rng(0)
    cv2.imwrite(str(inside / "x.png"), random.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    drawn = {}
    for model, block in ((made.checkpoint, "3.2"), (made.onnx, "3.2"), (made.checkpoint, "4.1")):
        report = infer(["x.png"], model, device="cpu", overlay=[f"selection:{block}"])
        drawn[model.suffix, block] = read_image(report.folder / "annotated/x.png").astype(int)
    assert np.abs(drawn[".pt", "3.2"] - drawn[".onnx", "3.2"]).max() <= 1
    assert np.abs(drawn[".pt", "3.2"] - drawn[".pt", "4.1"]).max() > 1


def test_overflow_of_static_packing_is_in_every_line_and_counted(inside: Path) -> None:
    made = make_exported(inside / "made", (112, 160), packing="static")
    random = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(str(inside / f"{index}.png"), random.integers(0, 256, (112, 160, 3), dtype=np.uint8))
    report = infer(["*.png"], made.onnx, runtime="onnxruntime", device="cpu", out="out", video=False)
    counts = [line["overflow"] for line in lines_of(inside / "out")]
    assert [len(count) for count in counts] == [4, 4, 4]
    assert report.summary.overflowed == sum(any(count) for count in counts) > 0


def test_the_share_of_each_batch_is_reported_beside_that_of_all(inside: Path) -> None:
    now: list[Progress] = []
    write_video(inside / "v.mp4", UNEVEN)
    infer(["v.mp4"], ColourRunner(), out="out", video=False, batch=4, on_progress=now.append)
    ratios = [float(np.mean(line["select_ratio"])) for line in lines_of(inside / "out")]
    parts = [ratios[:4], ratios[4:8], ratios[8:]]
    assert [each.batch_select_ratio for each in now] == pytest.approx([np.mean(part) for part in parts], abs=1e-4)
    assert now[-1].mean_select_ratio == pytest.approx(np.mean(ratios), abs=1e-4)
