"""Lines and summary that infer leaves behind; and that nothing has its name before it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spt_deploy.errors import OutputError
from spt_deploy.postprocess import Classification, Prediction
from spt_deploy.streaming.frames import Frame
from spt_deploy.streaming.writers import PredictionLog, write_summary
from tests.spt_deploy.streaming.support import files_in, picture

ANSWER = Prediction(classes=(Classification(0, "red", 0.5),), select_ratio=(0.25,))


def test_a_line_holds_the_frame_and_its_answer_and_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "out")
    log.write(Frame("a.mp4", 3, 1 / 3, picture(0)), ANSWER)
    (temporary,) = (tmp_path / "out").iterdir()
    assert temporary.name != "predictions.jsonl"
    assert json.loads(temporary.read_text(encoding="utf-8")) == {
        "source": "a.mp4",
        "frame": 3,
        "time": 0.333333,
        "size": [48, 64],
        "classes": [{"label": 0, "name": "red", "score": 0.5}],
        "select_ratio": [0.25],
    }
    log.write(Frame("b.png", 0, None, picture(0)), ANSWER)
    (path,) = log.keep()
    assert path == tmp_path / "out/predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["time"] for line in lines] == [0.333333, None]
    assert files_in(tmp_path) == ["out/predictions.jsonl"]


def test_names_of_any_alphabet_and_of_none_are_kept(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    for name in ("straße.png", "図.png", "not-utf8-\udcff.png"):
        log.write(Frame(name, 0, None, picture(0)), ANSWER)
    text = log.keep()[0].read_text(encoding="utf-8")
    assert [json.loads(line)["source"] for line in text.splitlines()] == ["straße.png", "図.png", "not-utf8-\udcff.png"]


def test_a_log_that_is_dropped_leaves_an_older_one_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("older\n", encoding="utf-8")
    log = PredictionLog(tmp_path)
    log.write(Frame("a.png", 0, None, picture(0)), ANSWER)
    log.drop()
    assert files_in(tmp_path) == ["predictions.jsonl"]
    assert (tmp_path / "predictions.jsonl").read_text(encoding="utf-8") == "older\n"


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"predictions.jsonl cannot be written"):
        PredictionLog(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path)
    log._file.close()
    with Path("/dev/full").open("wb") as full:
        log._file = full
        with pytest.raises(OutputError, match=r"disk full while writing .*predictions.jsonl; free some space"):
            log.write(Frame("a.png", 0, None, picture(0)), ANSWER)
        log.drop()
    assert files_in(tmp_path) == []


def test_the_summary_is_json_with_names_of_any_alphabet(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"sources": ["図.mp4", "\udcff"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"sources": ["図.mp4", "\udcff"]}
