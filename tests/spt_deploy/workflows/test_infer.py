"""infer end to end with a runner that computes something simple; real models are compared elsewhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import InputError, SourceError, UsageError
from spt_deploy.runtimes.base import Arrays
from spt_deploy.workflows.infer import UnreadableInputs, infer
from tests.spt_deploy.streaming.support import (
    ColourRunner,
    facts_of,
    files_in,
    lines_of,
    picture,
    python_command,
    read_times,
    wait_for_lines,
    write_video,
)

pytestmark = pytest.mark.usefixtures("inside")

UNEVEN = [0, 40, 55, 130, 131, 400, 520, 1000, 1033]


def test_a_video_gives_a_line_a_frame_and_an_annotated_video_at_the_same_times(inside: Path) -> None:
    report = infer([write_video(inside / "v.mkv", UNEVEN)], ColourRunner(facts_of("detect")), batch=4)
    assert report.folder == Path("runs/infer/v")
    assert files_in(report.folder) == ["annotated.mp4", "predictions.jsonl", "summary.json"]
    times = [tick / 1000 for tick in UNEVEN]
    assert [line["time"] for line in lines_of(report.folder)] == times
    assert read_times(report.folder / "annotated.mp4") == times
    first = lines_of(report.folder)[0]
    assert list(first) == ["source", "frame", "time", "size", "detections", "select_ratio"]
    assert [found["name"] for found in first["detections"]] == ["red", "green"]  # NMS took the copy of the red one
    assert not report.go_on


def test_the_summary_is_the_report(inside: Path) -> None:
    report = infer([write_video(inside / "v.mp4", UNEVEN)], ColourRunner(), batch=4)
    summary = json.loads((report.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary == report.to_dict()
    others = dict.fromkeys(("dropped", "failed", "resumed", "overflowed", "not_finite"), 0)
    assert summary["frames"] == {"read": 9, "inferred": 9} | others
    assert (summary["runtime"], summary["device"], summary["batch"]) == ("test", "cpu", 4)
    assert summary["files"] == [
        str(report.folder / name) for name in ("predictions.jsonl", "annotated.mp4", "summary.json")
    ]
    assert summary["limiting_stage"] in summary["stages"]


def test_without_video_there_are_answers_only_and_they_are_the_same(inside: Path) -> None:
    video = write_video(inside / "v.mp4", UNEVEN)
    drawn = infer([video], ColourRunner(), out="drawn")
    plain = infer([video], ColourRunner(), out="plain", video=False)
    assert files_in(plain.folder) == ["predictions.jsonl", "summary.json"]
    assert lines_of(plain.folder) == lines_of(drawn.folder)


def test_an_existing_folder_is_not_touched_unless_it_is_named(inside: Path) -> None:
    video = write_video(inside / "v.mp4", [0, 40])
    folders = [infer([video], ColourRunner()).folder for _ in range(3)]
    assert [folder.name for folder in folders] == ["v", "v-2", "v-3"]
    again = infer([video], ColourRunner(), out=folders[0], max_frames=1)
    assert len(lines_of(again.folder)) == 1


def test_a_folder_that_was_made_for_a_run_without_an_answer_goes_again(inside: Path) -> None:
    video = write_video(inside / "v.mp4", [0, 40])
    for _ in range(2):
        with pytest.raises(SourceError, match="no source has a frame 50"):
            infer([video], ColourRunner(), start=50)
        assert [path.name for path in inside.iterdir()] == ["v.mp4"]


def test_images_videos_and_a_glob_go_together(inside: Path) -> None:
    (inside / "photos").mkdir()
    for number in range(3):
        cv2.imwrite(str(inside / f"photos/{number}.png"), picture(number))
    write_video(inside / "v.mp4", [0, 40])
    runner = ColourRunner()
    report = infer(["photos/*.png", "v.mp4"], runner, batch=4, out="out")
    assert runner.batches == [4, 1]
    assert [(line["source"], line["frame"], line["time"]) for line in lines_of(report.folder)] == [
        ("photos/0.png", 0, None),  # the two take turns
        ("v.mp4", 0, 0.0),
        ("photos/1.png", 0, None),
        ("v.mp4", 1, 0.04),
        ("photos/2.png", 0, None),
    ]
    images = [f"annotated/{number}.png" for number in range(3)]
    assert files_in(report.folder) == ["annotated.mp4", *images, "predictions.jsonl", "summary.json"]


def test_stride_start_and_max_frames_keep_numbers_and_times(inside: Path) -> None:
    report = infer(
        [write_video(inside / "v.mp4", range(0, 2000, 40))], ColourRunner(), start=2, stride=10, max_frames=3
    )
    assert [(line["frame"], line["time"]) for line in lines_of(report.folder)] == [(2, 0.08), (12, 0.48), (22, 0.88)]
    assert read_times(report.folder / "annotated.mp4") == pytest.approx([0.08, 0.48, 0.88])


def test_a_broken_image_among_good_ones_is_named_after_the_good_ones_are_done(inside: Path) -> None:
    (inside / "photos").mkdir()
    for name in ("a", "c"):
        cv2.imwrite(str(inside / f"photos/{name}.png"), picture(1))
    (inside / "photos/b.png").write_bytes(b"no image")
    with pytest.raises(UnreadableInputs, match=r"1 input could not be read: photos/b.png is no image") as error:
        infer(["photos"], ColourRunner(), out="out")
    assert error.value.exit_code == 1
    assert [line["source"] for line in lines_of(inside / "out")] == ["photos/a.png", "photos/c.png"]
    assert error.value.report.summary.failures[0].source == "photos/b.png"
    assert json.loads((inside / "out/summary.json").read_text(encoding="utf-8"))["frames"]["failed"] == 1


def test_a_video_that_breaks_off_leaves_a_whole_shorter_one_and_the_next_is_done(inside: Path) -> None:
    broken = write_video(inside / "broken.mkv", range(0, 8000, 40))
    broken.write_bytes(broken.read_bytes()[: int(broken.stat().st_size * 0.75)])
    good = write_video(inside / "good.mp4", UNEVEN)
    with pytest.raises(UnreadableInputs, match=r"broken.mkv breaks off at") as error:
        infer([broken, good], ColourRunner(), out="out")
    lines = lines_of(inside / "out")
    kept = read_times(inside / "out/broken.annotated.mp4")
    assert 0 < len(kept) < 200
    assert len(lines) == len(kept) + len(UNEVEN) == error.value.report.summary.inferred
    assert len(read_times(inside / "out/good.annotated.mp4")) == len(UNEVEN)


def text_as_image() -> list[str]:
    Path("x.png").write_text("hello", encoding="utf-8")
    return ["x.png"]


def text_as_video() -> list[str]:
    Path("x.mp4").write_text("hello", encoding="utf-8")
    return ["x.mp4"]


def empty_folder() -> list[str]:
    Path("x").mkdir()
    return ["x"]


def video_without_frames() -> list[str]:
    with av.open("x.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return ["x.mp4"]


@pytest.mark.parametrize("make", [text_as_image, text_as_video, empty_folder, video_without_frames, lambda: ["x.mp4"]])
def test_when_nothing_can_be_read_the_input_is_named_and_nothing_is_left(make: Any, inside: Path) -> None:
    names = make()
    before = files_in(inside)
    with pytest.raises(SourceError, match=r"\bx\b") as error:
        infer(names, ColourRunner(), out="out")
    assert error.value.exit_code == 2
    assert files_in(inside) == before
    assert not (inside / "out").exists()


def test_a_start_past_the_end_is_said(inside: Path) -> None:
    with pytest.raises(SourceError, match="no source has a frame 50; start lower"):
        infer([write_video(inside / "v.mp4", UNEVEN)], ColourRunner(), start=50)


def test_when_the_model_fails_the_lines_that_are_whole_stay_and_nothing_half_written(inside: Path) -> None:
    class Broken(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if self.batches:
                wait_for_lines(inside / "out", 2)
                raise InputError("the model broke")
            return super()._run(images, threshold)

    video = write_video(inside / "v.mp4", UNEVEN)
    with pytest.raises(InputError, match="the model broke"):
        infer([video], Broken(), out="out", batch=2)
    assert files_in(inside) == ["out/.infer.json", "out/predictions.jsonl", "v.mp4"]
    assert [line["frame"] for line in lines_of(inside / "out")] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"conf": 2.0}, "conf is 2.0"),
        ({"stride": 0}, "stride is 0"),
        ({"overlay": ("heat",)}, "overlay is 'heat'"),
        ({"formats": ("xml",)}, "format is 'xml'"),
        ({"reconnect": -3.0}, r"reconnect is -3\.0; expected seconds, 0 for never"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_read(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        infer(["none.mp4"], **arguments)
    with pytest.raises(UsageError, match="no source was named"):
        infer([])


def test_a_batch_beyond_all_memory_is_a_wrong_argument(inside: Path) -> None:
    video = write_video(inside / "v.mp4", UNEVEN)
    for batch in (10**12, 10**17):
        with pytest.raises(UsageError, match=f"batch is {batch}, for which there is no memory; choose a smaller one"):
            infer([video], ColourRunner(), out="out", batch=batch)
    assert files_in(inside) == ["v.mp4"]


def test_memory_does_not_grow_with_the_video(vtest_video: Path, inside: Path) -> None:
    body = f"""
import resource
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner, facts_of
peaks = {{}}
peak = lambda now: peaks.setdefault(now.done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
infer([{str(vtest_video)!r}], ColourRunner(facts_of("detect", (224, 320))), out="out", on_progress=peak)
print(peaks[200], peaks[795])
"""
    done = subprocess.run(python_command(body), capture_output=True, text=True, cwd=inside, check=True, timeout=280)
    early, late = map(int, done.stdout.split())
    assert late <= early * 1.05
    assert len(lines_of(inside / "out")) == 795
    assert read_times(inside / "out/annotated.mp4") == read_times(vtest_video)


def test_no_batch_is_larger_than_an_engine_takes(inside: Path) -> None:
    class Narrow(ColourRunner):
        @property
        def max_batch(self) -> int | None:
            return 3

    seen = []
    runner = Narrow()
    run_inner = runner.infer
    runner.infer = lambda images, *given: (seen.append(len(images)), run_inner(images))[1]  # type: ignore[method-assign]
    report = infer([write_video(inside / "v.mp4", UNEVEN)], runner, batch=8)
    assert report.batch == 3
    assert seen == [3, 3, 3]
