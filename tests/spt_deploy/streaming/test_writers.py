"""Names and contents of what infer leaves behind; and that nothing has its name before it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from spt_deploy.errors import OutputError
from spt_deploy.images import read_image
from spt_deploy.postprocess import Classification, Prediction
from spt_deploy.streaming.frames import Frame, Sampling, Source
from spt_deploy.streaming.overlay import Overlay
from spt_deploy.streaming.sources import open_sources
from spt_deploy.streaming.writers import Annotations, PredictionLog, write_summary
from tests.spt_deploy.streaming.support import facts_of, picture, read_times, write_video

ANSWER = Prediction(classes=(Classification(0, "red", 0.5),), select_ratio=(0.25,))


def annotate(sources: list[Source], out: Path) -> Annotations:
    """Everything drawn and written, nothing closed."""
    annotations = Annotations(out, sources, Overlay(), facts_of())
    for source in sources:
        for frame in source.frames(Sampling()):
            assert isinstance(frame, Frame)
            annotations.write(source, frame, ANSWER)
    return annotations


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    assert names_in(tmp_path) == ["out/predictions.jsonl"]


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
    assert names_in(tmp_path) == ["predictions.jsonl"]
    assert (tmp_path / "predictions.jsonl").read_text(encoding="utf-8") == "older\n"


def test_one_video_is_annotated_mp4_and_has_that_name_once_it_is_whole(tmp_path: Path) -> None:
    sources = open_sources([write_video(tmp_path / "street.mkv", [0, 40, 90])])
    annotations = annotate(sources, tmp_path / "out")
    assert "annotated.mp4" not in names_in(tmp_path / "out")
    annotations.end(sources[0])
    assert names_in(tmp_path / "out") == ["annotated.mp4"]
    assert annotations.keep() == [tmp_path / "out/annotated.mp4"]
    assert read_times(tmp_path / "out/annotated.mp4") == [0.0, 0.04, 0.09]


def test_several_videos_each_have_their_own_and_equal_names_get_a_number(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    names = ["a/x.mp4", "b/x.mp4", "c/y.1.mkv"]
    sources = open_sources([write_video(tmp_path / name, [0, 40]) for name in names])
    kept = annotate(sources, tmp_path / "out").keep()
    assert [path.name for path in kept] == ["x.annotated.mp4", "x-2.annotated.mp4", "y.1.annotated.mp4"]
    assert names_in(tmp_path / "out") == sorted(path.name for path in kept)


def test_images_keep_their_names_and_subfolders_and_equal_names_get_a_number(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/sub/x.png", "b/x.png", "b/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(0))
    sources = open_sources([tmp_path / "a", tmp_path / "b", tmp_path / "a/x.png"])
    assert annotate(sources, tmp_path / "out").keep() == [tmp_path / "out/annotated"]
    assert names_in(tmp_path / "out/annotated") == ["sub/x.png", "x-2.png", "x-3.png", "x.png", "y.jpg"]
    assert read_image(tmp_path / "out/annotated/y.jpg").shape == (48, 64, 3)


def test_a_kind_that_cannot_hold_colours_becomes_a_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.pgm"), np.zeros((48, 64), np.uint8))
    annotate(open_sources([tmp_path / "x.pgm"]), tmp_path / "out").keep()
    assert names_in(tmp_path / "out") == ["annotated/x.png"]


def test_a_glob_that_climbs_does_not_take_the_results_out_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "x.png"), picture(0))
    monkeypatch.chdir(tmp_path)
    annotate(open_sources(["*/../x.png"]), Path("out")).keep()
    assert names_in(tmp_path / "out") == ["annotated/a/x.png"]


def test_what_is_dropped_is_gone_and_what_was_whole_stays(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / name, [0, 40]) for name in ("a.mp4", "b.mp4")]
    sources = open_sources(videos)
    annotations = annotate(sources, tmp_path / "out")
    annotations.end(sources[0])
    annotations.drop()
    assert names_in(tmp_path / "out") == ["a.annotated.mp4"]


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
    assert names_in(tmp_path) == []


def test_the_summary_is_json_with_names_of_any_alphabet(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"sources": ["図.mp4", "\udcff"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"sources": ["図.mp4", "\udcff"]}
