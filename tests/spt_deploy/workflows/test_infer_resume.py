"""infer that is stopped or killed, and goes on: outputs are whole, every line is there once."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import UsageError
from spt_deploy.images import read_image
from spt_deploy.runtimes.base import Arrays
from spt_deploy.streaming.outputs import Outputs
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import (
    ColourRunner,
    StoppingRunner,
    facts_of,
    files_in,
    lines_of,
    picture,
    python_command,
    read_times,
    write_video,
)

pytestmark = pytest.mark.usefixtures("inside")


def test_a_run_that_is_begun_beside_another_in_one_folder_is_refused_and_takes_nothing_away(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 40 * 6, 40))
    refused = []

    def begin_another(progress: object) -> None:
        for resume in (False, True):
            with pytest.raises(UsageError, match="another run writes its results to out"):
                infer(["v.mp4"], ColourRunner(), out="out", resume=resume)
            refused.append(resume)

    report = infer(["v.mp4"], ColourRunner(), out="out", batch=2, on_progress=begin_another)
    assert refused == [False, True] * 3
    assert len(lines_of(inside / "out")) == report.summary.inferred == 6
    assert len(read_times(inside / "out/annotated.mp4")) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_the_outputs_parse_and_play(number: signal.Signals, inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 40 * 3000, 40))
    body = """
from pathlib import Path
from spt_deploy.images import read_image
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
said = lambda now: Path("started").touch()
report = infer(["v.mp4"], ColourRunner(), out="out", batch=2, on_progress=said)
print(report.summary.inferred, report.go_on)
"""
    process = subprocess.Popen(python_command(body), stdout=subprocess.PIPE, text=True, cwd=inside)
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


def test_a_signal_while_the_files_are_closed_stops_nothing(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    keep = Outputs.keep

    def interrupted(self: Outputs) -> list[Path]:
        signal.raise_signal(signal.SIGINT)
        return keep(self)

    monkeypatch.setattr(Outputs, "keep", interrupted)
    report = infer(["v.mp4"], ColourRunner(), out="out", video=False)
    assert (report.summary.inferred, report.go_on) == (10, "")
    assert files_in(inside / "out") == ["predictions.jsonl", "summary.json"]


class InterruptedRunner(ColourRunner):
    """A second Ctrl-C comes once lines have been written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def _run(self, images: npt.NDArray[np.float32], threshold: float | None) -> Arrays:
        if self.batches:
            assert self.written.wait(30)
            raise KeyboardInterrupt
        return super()._run(images, threshold)


def test_a_second_ctrl_c_keeps_the_lines_that_are_whole_and_can_be_resumed(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    runner = InterruptedRunner()
    with pytest.raises(KeyboardInterrupt):
        infer(["v.mp4"], runner, out="out", batch=2, on_progress=lambda now: runner.written.set())
    assert files_in(inside / "out") == [".infer.json", "predictions.jsonl"]
    assert [line["frame"] for line in lines_of(inside / "out")] == [0, 1]
    rest = infer(["v.mp4"], ColourRunner(), out="out", resume=True)
    assert (rest.summary.resumed, rest.summary.inferred) == (2, 8)


def test_a_run_that_is_killed_again_and_again_ends_with_every_line_once(inside: Path) -> None:
    """The last line may be torn, and the killed run's files are hidden: nothing of that shows in the end."""
    write_video(inside / "v.mp4", range(0, 40 * 1500, 40))
    write_video(inside / "w.mp4", range(0, 40 * 300, 40))
    whole = infer(["v.mp4", "w.mp4"], ColourRunner(), out="whole", video=False)
    body = """
from pathlib import Path
from spt_deploy.images import read_image
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner
said = lambda now: Path("progress").write_text(str(now.done))
infer(["v.mp4", "w.mp4"], ColourRunner(), out="out", batch=2, on_progress=said, resume={resume})
"""
    kills = 0
    for turn in range(3):
        (inside / "progress").unlink(missing_ok=True)
        process = subprocess.Popen(python_command(body.format(resume=turn > 0)), cwd=inside)
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

    infer(["v.mp4"], StoppingRunner(), out="out", batch=2, video=False)
    with pytest.raises(UsageError, match=r"was begun with conf 0.25, not 0.5.*choose another --out"):
        infer(["v.mp4"], ColourRunner(), out="out", conf=0.5, resume=True)
    with pytest.raises(UsageError, match="name its folder with --out"):
        infer(["v.mp4"], ColourRunner(), resume=True)
    report = infer(["v.mp4"], ColourRunner(), out="out", resume=True, video=False)
    assert report.summary.resumed + report.summary.inferred == 10
    again = infer(["v.mp4"], ColourRunner(), out="out", resume=True, video=False)
    assert (again.summary.resumed, again.summary.inferred) == (10, 0)
    assert len(lines_of(inside / "out")) == 10


def test_a_run_that_is_complete_is_not_gone_on_with_by_another(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    infer(["v.mp4"], ColourRunner(), out="out", max_frames=4, video=False)
    with pytest.raises(UsageError, match=r"was begun with conf 0.25, not 0.5.*choose another --out"):
        infer(["v.mp4"], ColourRunner(), out="out", conf=0.5, video=False, resume=True)
    infer(["v.mp4"], ColourRunner(), out="out", conf=0.5, max_frames=4, video=False)  # replaces it
    report = infer(["v.mp4"], ColourRunner(), out="out", conf=0.5, video=False, resume=True)
    assert (report.summary.resumed, report.summary.inferred) == (4, 6)


def test_a_run_that_is_killed_goes_on_with_its_own_lines_and_not_with_those_it_was_to_replace(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    infer(["v.mp4"], ColourRunner(), out="out", max_frames=8, video=False)
    body = """
import os
from pathlib import Path
from spt_deploy.workflows.infer import infer
from tests.spt_deploy.streaming.support import ColourRunner, wait_for_lines
class Killed(ColourRunner):
    def _run(self, images, threshold):
        if self.batches:
            wait_for_lines(Path("out"), 2)
            os._exit(9)
        return super()._run(images, threshold)
infer(["v.mp4"], Killed(), out="out", batch=2, video=False, conf=0.5)
"""
    assert subprocess.run(python_command(body), cwd=inside, timeout=60).returncode == 9
    with pytest.raises(UsageError, match=r"was begun with conf 0.5, not 0.25"):
        infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    report = infer(["v.mp4"], ColourRunner(), out="out", video=False, conf=0.5, resume=True)
    assert (report.summary.resumed, report.summary.inferred) == (2, 8)
    assert files_in(inside / "out") == ["predictions.jsonl", "summary.json"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_stopped_while_the_model_loads_leaves_what_was_there(resume: bool, inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))

    def stop(*given: object) -> None:
        signal.raise_signal(signal.SIGINT)

    report = infer(["v.mp4"], ColourRunner(), out="new", on_model=stop)
    assert (report.files, report.go_on) == ((), "stopped by SIGINT before the first frame; run the command again")
    assert not (inside / "new").exists()
    infer(["v.mp4"], ColourRunner(), out="out", max_frames=4)
    names, lines = files_in(inside / "out"), lines_of(inside / "out")
    infer(["v.mp4"], ColourRunner(), out="out", on_model=stop, resume=resume)
    assert set(files_in(inside / "out")) - {".infer.json"} == set(names)
    assert lines_of(inside / "out") == lines
    report = infer(["v.mp4"], ColourRunner(), out="out", resume=True)
    assert (report.summary.resumed, report.summary.inferred) == (4, 6)


def test_a_source_that_is_named_twice_is_resumed_twice(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 800, 40))

    infer(["v.mp4", "v.mp4"], StoppingRunner(), out="out", batch=3, video=False)
    infer(["v.mp4", "v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert sorted(line["frame"] for line in lines_of(inside / "out")) == sorted([*range(20), *range(20)])


def test_other_formats_are_whole_after_a_stop_and_again_after_the_rest(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 800, 40))

    def counts() -> tuple[int, int, int]:
        lines = lines_of(inside / "out")
        coco = json.loads((inside / "out/predictions.coco.json").read_text(encoding="utf-8"))
        found = sum(len(line["detections"]) for line in lines)
        rows = (inside / "out/predictions.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) - 1 == len(coco["annotations"]) == found
        return len(lines), len(coco["images"]), found

    options: dict[str, Any] = {"out": "out", "video": False, "formats": ["csv", "coco"]}
    report = infer(["v.mp4"], StoppingRunner(facts_of("detect"), signal.SIGINT), batch=2, **options)
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


def test_the_lines_of_a_killed_run_are_not_taken_for_those_of_a_new_run(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    write_video(inside / "w.mp4", range(0, 800, 40))
    infer(["w.mp4"], ColourRunner(), out="out", conf=0.5, video=False)
    (inside / "out/predictions.jsonl").rename(inside / "out/.predictions.1-ab.jsonl")
    infer(["v.mp4"], ColourRunner(), out="out", video=False)
    assert files_in(inside / "out") == ["predictions.jsonl", "summary.json"]
    again = infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert (again.summary.resumed, again.summary.inferred) == (10, 0)
    assert {line["source"] for line in lines_of(inside / "out")} == {"v.mp4"}


def test_what_a_run_that_was_killed_left_of_other_formats_and_videos_goes(inside: Path) -> None:
    write_video(inside / "v.mp4", [0, 40])
    infer(["v.mp4"], ColourRunner(), out="out", video=False)
    names = (".predictions.1-ab.csv", ".predictions.coco.1-ab.json")
    videos = (".annotated.1-ab.mp4", ".annotated-2.1-ab.mp4", ".v.annotated.1-ab.mp4", ".v-2.annotated.1-ab.mp4")
    for name in (*names, *videos):
        (inside / "out" / name).touch()
    infer(["v.mp4"], ColourRunner(), out="out", video=False, resume=True)
    assert files_in(inside / "out") == ["predictions.jsonl", "summary.json"]


def test_images_of_equal_names_have_the_names_after_a_stop_that_they_have_without(inside: Path) -> None:
    for number, name in enumerate(("a/x.png", "a/y.png", "b/w.png", "b/x.png")):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, picture(0, 48 + number))
    infer(["a", "b"], ColourRunner(), out="out", max_frames=1)  # a/x.png and b/w.png
    assert len(lines_of(inside / "out")) == 2
    infer(["a", "b"], ColourRunner(), out="out", resume=True)
    heights = {
        name: read_image(inside / "out/annotated" / name).shape[0] for name in files_in(inside / "out/annotated")
    }
    assert heights == {"a/x.png": 48, "a/y.png": 49, "b/w.png": 50, "b/x.png": 51}
