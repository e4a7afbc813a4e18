"""infer end to end with a runner that computes something simple; real models are compared elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import InputError, OutputError, SourceError, UsageError
from spt_deploy.images import read_image
from spt_deploy.runtimes.base import Arrays
from spt_deploy.streaming.pipeline import Progress
from spt_deploy.workflows.infer import UnreadableInputs, fresh_folder, infer
from tests.exported import make_exported
from tests.spt_deploy.streaming.support import ColourRunner, facts_of, picture, read_times, write_video

UNEVEN = [0, 40, 55, 130, 131, 400, 520, 1000, 1033]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    assert summary["frames"] == {"read": 9, "inferred": 9, "dropped": 0, "failed": 0, "resumed": 0, "overflowed": 0}
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


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/street.mp4", "street"),
        ("photos", "photos"),
        ("photos/**/*.png", "photos"),
        ("*.png", "images"),
        (".", "images"),
    ],
)
def test_the_folder_is_named_after_the_source(source: str, name: str) -> None:
    assert fresh_folder(source) == Path("runs/infer") / name


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


def test_when_the_model_fails_nothing_half_written_is_left(inside: Path) -> None:
    class Broken(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if self.batches:
                raise InputError("the model broke")
            return super()._run(images, threshold)

    video = write_video(inside / "v.mp4", UNEVEN)
    with pytest.raises(InputError, match="the model broke"):
        infer([video], Broken(), out="out", batch=2)
    assert files_in(inside) == ["v.mp4"]
    assert not (inside / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"conf": 2.0}, "conf is 2.0"),
        ({"stride": 0}, "stride is 0"),
        ({"overlay": ("heat",)}, "overlay is 'heat'"),
        ({"formats": ("xml",)}, "format is 'xml'"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_read(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        infer(["none.mp4"], **arguments)
    with pytest.raises(UsageError, match="no source was named"):
        infer([])


def test_an_out_that_is_a_file_is_an_output_error(inside: Path) -> None:
    (inside / "out").touch()
    with pytest.raises(OutputError, match="out"):
        infer([write_video(inside / "v.mp4", [0, 40])], ColourRunner(), out="out")


def script(body: str) -> list[str]:
    """A Python process that sees what this one sees."""
    found = [str(Path(entry).absolute()) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {found!r}\n{body}"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_the_outputs_parse_and_play(number: signal.Signals, inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 40 * 3000, 40))
    body = """
from pathlib import Path
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
said = lambda now: Path("started").touch()
report = infer(["v.mp4"], ColourRunner(), out="out", batch=2, on_progress=said)
print(report.summary.inferred, report.go_on)
"""
    process = subprocess.Popen(script(body), stdout=subprocess.PIPE, text=True, cwd=inside)
    while not (inside / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    count = int(said.split()[0])
    lines = lines_of(inside / "out")
    assert 0 < count < 3000
    assert len(lines) == len(read_times(inside / "out/annotated.mp4")) == count
    assert f"stopped by {number.name} after frame {count - 1} of v.mp4" in said
    assert "--resume --out out" in said
    assert [name for name in files_in(inside / "out") if not name.startswith(".")] == [
        "annotated.mp4",
        "predictions.jsonl",
        "summary.json",
    ]
    rest = infer(["v.mp4"], ColourRunner(), out="out", batch=3, max_frames=count + 20, resume=True)
    assert (rest.summary.resumed, rest.summary.inferred) == (count, 20)
    assert [line["frame"] for line in lines_of(inside / "out")] == list(range(count + 20))
    assert len(read_times(inside / "out/annotated.mp4")) == count  # what was whole stays
    assert len(read_times(inside / "out/annotated-2.mp4")) == 20
    assert not (inside / "out/.infer.json").exists()


def test_a_run_that_is_killed_again_and_again_ends_with_every_line_once(inside: Path) -> None:
    """The last line may be torn, and the killed run's files are hidden: nothing of that shows in the end."""
    write_video(inside / "v.mp4", range(0, 40 * 1500, 40))
    write_video(inside / "w.mp4", range(0, 40 * 300, 40))
    whole = infer(["v.mp4", "w.mp4"], ColourRunner(), out="whole", video=False)
    body = """
from pathlib import Path
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
said = lambda now: Path("progress").write_text(str(now.done))
infer(["v.mp4", "w.mp4"], ColourRunner(), out="out", batch=2, on_progress=said, resume={resume})
"""
    kills = 0
    for turn in range(3):
        (inside / "progress").unlink(missing_ok=True)
        process = subprocess.Popen(script(body.format(resume=turn > 0)), cwd=inside)
        while not (inside / "progress").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if turn == 0:
            (torn,) = (inside / "out").glob(".predictions.*.jsonl")
            with torn.open("a") as file:
                file.write('{"source": "v.mp4", "fra')
    assert kills
    report = infer(["v.mp4", "w.mp4"], ColourRunner(), out="out", resume=True)
    assert report.summary.resumed > 0
    assert report.summary.resumed + report.summary.inferred == 1800

    def by_source(folder: Path) -> list[dict[str, Any]]:
        return sorted(lines_of(folder), key=lambda line: (line["source"], line["frame"]))

    assert by_source(inside / "out") == by_source(whole.folder)
    assert not [name for name in files_in(inside / "out") if name.startswith(".")]


def test_another_model_or_threshold_does_not_go_on_with_a_run(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))

    class Stopping(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if len(self.batches) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._run(images, threshold)

    infer(["v.mp4"], Stopping(), out="out", batch=2, video=False)
    with pytest.raises(UsageError, match=r"was begun with conf 0.25, not 0.5.*choose another --out"):
        infer(["v.mp4"], ColourRunner(), out="out", conf=0.5, resume=True)
    with pytest.raises(UsageError, match="name its folder with --out"):
        infer(["v.mp4"], ColourRunner(), resume=True)
    report = infer(["v.mp4"], ColourRunner(), out="out", resume=True, video=False)
    assert report.summary.resumed + report.summary.inferred == 10
    again = infer(["v.mp4"], ColourRunner(), out="out", resume=True, video=False)
    assert (again.summary.resumed, again.summary.inferred) == (10, 0)
    assert len(lines_of(inside / "out")) == 10


def test_a_full_disk_is_one_sentence_and_leaves_no_file_under_its_name(inside: Path) -> None:
    # A limit on the size of files stands in for a full disk, which a test cannot have.
    write_video(inside / "v.mp4", range(0, 40 * 200, 40))
    body = """
import resource
from spt_deploy.errors import OutputError
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    infer(["v.mp4"], ColourRunner(), out="out")
except OutputError as error:
    print(error)
"""
    done = subprocess.run(script(body), capture_output=True, text=True, cwd=inside, check=True, timeout=120)
    assert done.stdout.startswith("out/predictions.jsonl cannot be written: File too large; ")
    assert done.stderr == ""
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
    done = subprocess.run(script(body), capture_output=True, text=True, cwd=inside, check=True, timeout=280)
    early, late = map(int, done.stdout.split())
    assert late <= early * 1.05
    assert len(lines_of(inside / "out")) == 795
    assert read_times(inside / "out/annotated.mp4") == read_times(vtest_video)


def test_overflow_of_static_packing_is_in_every_line_and_counted(inside: Path) -> None:
    made = make_exported(inside / "made", (112, 160), packing="static")
    random = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(str(inside / f"{index}.png"), random.integers(0, 256, (112, 160, 3), dtype=np.uint8))
    report = infer(["*.png"], made.onnx, runtime="onnxruntime", device="cpu", out="out", video=False)
    counts = [line["overflow"] for line in lines_of(inside / "out")]
    assert [len(count) for count in counts] == [4, 4, 4]
    assert report.summary.overflowed == sum(any(count) for count in counts) > 0


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


def test_a_source_that_is_named_twice_is_resumed_twice(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 800, 40))

    class Stopping(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if len(self.batches) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._run(images, threshold)

    infer(["v.mp4", "v.mp4"], Stopping(), out="out", batch=3, video=False)
    infer(["v.mp4", "v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert sorted(line["frame"] for line in lines_of(inside / "out")) == sorted([*range(20), *range(20)])


def test_a_run_that_reads_nothing_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(SourceError):
        infer([tmp_path / "a.png"], ColourRunner(), out=tmp_path / "new/runs/a")
    assert not (tmp_path / "new").exists()


def test_other_formats_are_whole_after_a_stop_and_again_after_the_rest(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 800, 40))

    class Stopping(ColourRunner):
        def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
            if len(self.batches) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super()._run(images, threshold)

    def counts() -> tuple[int, int, int]:
        lines = lines_of(inside / "out")
        coco = json.loads((inside / "out/predictions.coco.json").read_text(encoding="utf-8"))
        found = sum(len(line["detections"]) for line in lines)
        rows = (inside / "out/predictions.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) - 1 == len(coco["annotations"]) == found
        return len(lines), len(coco["images"]), found

    options: dict[str, Any] = {"out": "out", "video": False, "formats": ["csv", "coco"]}
    report = infer(["v.mp4"], Stopping(facts_of("detect")), batch=2, **options)
    begun, images, _ = counts()
    assert begun == images == report.summary.inferred < 20
    assert [path.name for path in report.files] == [
        "predictions.jsonl",
        "predictions.csv",
        "predictions.coco.json",
        "summary.json",
    ]
    infer(["v.mp4"], ColourRunner(facts_of("detect")), resume=True, **options)
    assert counts() == (20, 20, 40)
    assert not [name for name in files_in(inside / "out") if name.startswith(".")]


def test_what_a_run_that_was_killed_left_of_other_formats_goes(inside: Path) -> None:
    write_video(inside / "v.mp4", [0, 40])
    infer(["v.mp4"], ColourRunner(), out="out", video=False)
    for name in (".predictions.1-ab.csv", ".predictions.coco.1-ab.json"):
        (inside / "out" / name).touch()
    infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert files_in(inside / "out") == ["predictions.jsonl", "summary.json"]


def test_crops_are_written_without_a_video_one_a_detection(inside: Path) -> None:
    write_video(inside / "v.mp4", UNEVEN)
    report = infer(["v.mp4"], ColourRunner(facts_of("detect")), out="out", video=False, save_crops=True)
    names = {path.name for path in report.files}
    assert names == {"predictions.jsonl", "crops", "summary.json"}
    expected = [f"crops/{name}/v-{frame:06}-1.jpg" for name in ("green", "red") for frame in range(len(UNEVEN))]
    assert files_in(inside / "out") == [*expected, "predictions.jsonl", "summary.json"]


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


def test_the_share_of_each_batch_is_reported_beside_that_of_all(inside: Path) -> None:
    now: list[Progress] = []
    write_video(inside / "v.mp4", UNEVEN)
    infer(["v.mp4"], ColourRunner(), out="out", video=False, batch=4, on_progress=now.append)
    ratios = [float(np.mean(line["select_ratio"])) for line in lines_of(inside / "out")]
    parts = [ratios[:4], ratios[4:8], ratios[8:]]
    assert [each.batch_select_ratio for each in now] == pytest.approx([np.mean(part) for part in parts], abs=1e-4)
    assert now[-1].mean_select_ratio == pytest.approx(np.mean(ratios), abs=1e-4)
