"""The command: results on stdout, everything else on stderr, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result

from spt_deploy.cli import main
from spt_deploy.workflows import infer as workflow
from tests.spt_deploy.streaming.support import ColourRunner, facts_of, picture, python_command, write_video


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "_runner", lambda *given: (ColourRunner(), "taking colour.model: the only one"))
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["infer", *arguments])


def test_people_read_what_was_done_how_fast_and_where_it_is(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    result = call("v.mp4", "--batch", "4")
    assert result.exit_code == 0
    first, second, third, *files = result.stdout.splitlines()
    assert first.startswith("10 frames in ")
    assert "colour.model (test cpu fp32, batch 4)" in first
    assert second.startswith("slowest stage: ")
    assert third.startswith("kept ")
    assert files == [f"runs/infer/v/{name}" for name in ("predictions.jsonl", "annotated.mp4", "summary.json")]
    assert "taking colour.model: the only one" in result.stderr
    assert "10/10 frames" in result.stderr


def test_a_run_that_has_nothing_left_to_do_has_no_slowest_stage(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    for _ in range(2):
        result = call("v.mp4", "--resume", "--out", "out", "--no-video")
        assert result.exit_code == 0
    assert "10 frames have a line" in result.stderr
    assert result.stdout.startswith("0 frames in ")
    assert "slowest stage" not in result.stdout


def test_json_is_one_document_and_the_same_as_the_summary(inside: Path) -> None:
    write_video(inside / "v.mp4", range(0, 400, 40))
    result = call("v.mp4", "--json", "--out", "out", "--no-video", "--stride", "3", "--max-frames", "2")
    document = json.loads(result.stdout)
    assert document == json.loads((inside / "out/summary.json").read_text(encoding="utf-8"))
    assert document["frames"]["inferred"] == 2
    assert not (inside / "out/annotated.mp4").exists()


def test_formats_are_given_one_by_one_or_with_commas(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "_runner", lambda *given: (ColourRunner(facts_of("detect")), ""))
    write_video(inside / "v.mp4", [0, 40])
    for options in (("--format", "csv", "--format", "coco"), ("--format", "csv, coco"), ("--format", "jsonl,coco,csv")):
        result = call("v.mp4", "--no-video", *options, "--save-crops")
        assert result.exit_code == 0
        names = [Path(line).name for line in result.stdout.splitlines()[3:]]
        assert names == ["predictions.jsonl", "predictions.csv", "predictions.coco.json", "crops", "summary.json"]


def test_a_name_that_is_not_utf_8_is_printed_as_it_is(inside: Path) -> None:
    name = os.fsdecode(b"caf\xe9")  # Latin-1
    cv2.imwrite(str(inside / "a.png"), picture(0))
    result = call("a.png", "--no-video", "--out", name)
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes.splitlines()[-1] == b"caf\xe9/summary.json"


def test_an_unreadable_input_is_exit_code_1_after_the_result(inside: Path) -> None:
    cv2.imwrite(str(inside / "a.png"), picture(0))
    (inside / "b.png").write_bytes(b"no image")
    result = call("a.png", "b.png", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failures"][0]["source"] == "b.png"
    assert "error: 1 input could not be read: b.png is no image" in result.stderr


def test_an_input_that_is_not_there_is_exit_code_2_and_writes_nothing(inside: Path) -> None:
    result = call("none.mp4")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "error: there is no file or folder none.mp4" in result.stderr
    assert not list(inside.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--overlay", "heat"), "overlay is 'heat'; expected boxes, selection, both with a comma, or none"),
        (("--overlay", "boxes,selection:3.9"), "overlay names the SPA block '3.9'; the model's are 3.1, 3.2, 4.1, 4.2"),
        (("--format", "csv,xml"), "format is 'xml'; known are jsonl, csv, coco"),
        (("--format", "coco"), "COCO results are of detectors, and this model's task is classify"),
        (("--save-crops",), "crops are the boxes of a detector"),
        (("--conf", "7"), "conf is 7.0; expected a number from 0 to 1"),
        (("--batch", "0"), "batch is 0; expected 1 or more"),
        (("--max-wait", "-1"), "'--max-wait': -1.0 is not in the range x>=0"),
        (("--runtime", "abacus"), "abacus"),
    ],
)
def test_a_bad_option_is_exit_code_2_and_named(arguments: tuple[str, ...], sentence: str, inside: Path) -> None:
    write_video(inside / "v.mp4", [0, 40])
    result = call("v.mp4", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


_ASKED_TO_STOP = """
import signal
from spt_deploy.cli import main
from spt_deploy.workflows import infer as workflow
from tests.spt_deploy.streaming.support import ColourRunner

class Asking(ColourRunner):
    def _run(self, images, threshold):
        if not self.batches:  # what was read is finished; a second signal would not wait for that
            signal.raise_signal(signal.SIGTERM)
        return super()._run(images, threshold)

workflow._runner = lambda *given: (Asking(), "")
main(["infer", "v.mp4", "--batch", "4"])
"""


def test_a_signal_is_its_shell_exit_code_and_a_sentence_on_how_to_go_on(inside: Path) -> None:
    """In a process of its own: a signal is for the whole process, and this one belongs to the tests."""
    write_video(inside / "v.mp4", range(0, 4000, 40))
    done = subprocess.run(python_command(_ASKED_TO_STOP), capture_output=True, text=True, check=False, cwd=inside)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped by SIGTERM after frame " in done.stderr
    assert "go on with the same command and --resume --out" in done.stderr


def test_resume_begins_where_there_is_no_run_and_says_so(inside: Path) -> None:
    write_video(inside / "v.mp4", [0, 40, 80])
    said = []
    for frames in ("1", "2", "3"):
        result = call("v.mp4", "--no-video", "--resume", "--out", "out", "--max-frames", frames)
        assert result.exit_code == 0, result.stderr
        said += [line for line in result.stderr.splitlines() if " in out: " in line]
    assert said == [
        "no run to go on with in out: a new one begins",
        "going on in out: 1 frame has a line",
        "going on in out: 2 frames have a line",
    ]


def test_frames_from_a_pipe(inside: Path) -> None:
    images = b"".join(picture(number).tobytes() for number in range(11))
    result = CliRunner().invoke(main, ["infer", "-", "--raw", "64x48", "--batch", "4", "--json"], input=images)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["folder"] == "runs/infer/stdin"
    lines = (inside / "runs/infer/stdin/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["source"], json.loads(line)["frame"]) for line in lines] == [
        ("stdin", number) for number in range(11)
    ]


_READS_A_PIPE = """
from spt_deploy.cli import main
from spt_deploy.workflows import infer as workflow
from tests.spt_deploy.streaming.support import ColourRunner

workflow._runner = lambda *given: (ColourRunner(), "")
main(["infer", "-", "--raw", "64x48", "--no-video", "--out", "out"])
"""


def test_a_signal_ends_a_pipe_that_is_silent_and_stays_open(inside: Path) -> None:
    """The thread that waits for the pipe cannot be woken: Python must be able to end all the same."""
    out = inside / "out"
    with subprocess.Popen(
        python_command(_READS_A_PIPE), stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=inside
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(picture(0).tobytes() * 4)
        process.stdin.flush()
        while not any('"frame": 3' in path.read_text(encoding="utf-8") for path in out.glob(".predictions.*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()  # until it has ended
        assert process.wait() == 128 + signal.SIGINT, said
    assert len((out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("size", ["640", "640x", "0x480", "axb"])
def test_a_size_that_is_none_is_bad_usage(size: str) -> None:
    result = call("-", "--raw", size)
    assert result.exit_code == 2
    assert f"{size!r} is no size; expected WIDTHxHEIGHT" in result.stderr


def test_a_list_of_sources(inside: Path) -> None:
    (inside / "in").mkdir()
    for number in range(3):
        cv2.imwrite(str(inside / f"in/{number}.png"), picture(number))
    write_video(inside / "in/v.mp4", range(0, 200, 40))
    (inside / "in/all.txt").write_text("# the pictures\n2.png\n0.png\n\nv.mp4\n1.png\n", encoding="utf-8")
    result = call("in/all.txt", "--out", "out")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (inside / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["source"] for line in lines if line["source"].endswith(".png")] == [
        "in/2.png",
        "in/1.png",
        "in/0.png",
    ]
    assert sum(line["source"] == "in/v.mp4" for line in lines) == 5
    assert {path.name for path in (inside / "out/annotated").iterdir()} == {"0.png", "1.png", "2.png"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "in.txt names no source"),
        ("none.png\n", "in.txt names 'none.png': there is no file or folder none.png"),
        ("other.txt\n", "in.txt names the list other.txt; a list may not name lists"),
    ],
)
def test_a_list_that_is_none_is_bad_usage(text: str, sentence: str, inside: Path) -> None:
    (inside / "in.txt").write_text(text, encoding="utf-8")
    result = call("in.txt")
    assert result.exit_code == 2
    assert sentence in result.stderr
