"""Names and contents of annotated videos and images; and that none has its name before it is whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from spt_deploy.images import read_image
from spt_deploy.postprocess import Classification, Prediction
from spt_deploy.streaming.annotations import Annotations
from spt_deploy.streaming.frames import Frame, Sampling, Source
from spt_deploy.streaming.overlay import Overlay
from spt_deploy.streaming.sources import open_sources
from tests.spt_deploy.streaming.support import facts_of, files_in, give, picture, read_times, write_video

ANSWER = Prediction(classes=(Classification(0, "red", 0.5),), select_ratio=(0.25,))


def annotate(sources: list[Source], out: Path) -> Annotations:
    """Everything drawn and written, nothing closed."""
    annotations = Annotations(out, sources, Overlay(), facts_of())
    for source in sources:
        for frame in source.frames(Sampling()):
            assert isinstance(frame, Frame)
            give(annotations, source, frame, ANSWER)
    return annotations


def test_one_video_is_annotated_mp4_and_has_that_name_once_it_is_whole(tmp_path: Path) -> None:
    sources = open_sources([write_video(tmp_path / "street.mkv", [0, 40, 90])])
    annotations = annotate(sources, tmp_path / "out")
    assert "annotated.mp4" not in files_in(tmp_path / "out")
    annotations.end(sources[0])
    assert files_in(tmp_path / "out") == ["annotated.mp4"]
    assert annotations.keep() == [tmp_path / "out/annotated.mp4"]
    assert read_times(tmp_path / "out/annotated.mp4") == [0.0, 0.04, 0.09]


def test_several_videos_each_have_their_own_and_equal_names_get_a_number(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    names = ["a/x.mp4", "b/x.mp4", "c/y.1.mkv"]
    sources = open_sources([write_video(tmp_path / name, [0, 40]) for name in names])
    kept = annotate(sources, tmp_path / "out").keep()
    assert [path.name for path in kept] == ["x.annotated.mp4", "x-2.annotated.mp4", "y.1.annotated.mp4"]
    assert files_in(tmp_path / "out") == sorted(path.name for path in kept)


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), picture(number, 48 + 2 * number))


def test_images_of_one_source_keep_their_names_and_subfolders(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a/x.png", "a/sub/x.png", "a/y.jpg")
    sources = open_sources([tmp_path / "a"])
    assert annotate(sources, tmp_path / "out").keep() == [tmp_path / "out/annotated"]
    assert files_in(tmp_path / "out/annotated") == ["sub/x.png", "x.png", "y.jpg"]
    assert read_image(tmp_path / "out/annotated/y.jpg").shape == (52, 64, 3)


@pytest.mark.parametrize("names", [("a", "b", "a/x.png"), ("*/x.png", "b"), ("a/x.png", "b/x.png", "b/y.jpg")])
def test_images_of_several_sources_keep_the_folders_below_what_they_have_in_common(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, "a/x.png", "b/x.png", "b/y.jpg")
    monkeypatch.chdir(tmp_path)
    sources = open_sources([names[0], *(tmp_path / name for name in names[1:])])
    annotate(sources, tmp_path / "out").keep()
    assert files_in(tmp_path / "out/annotated") == ["a/x.png", "b/x.png", "b/y.jpg"]
    assert read_image(tmp_path / "out/annotated/a/x.png").shape == (48, 64, 3)
    assert read_image(tmp_path / "out/annotated/b/x.png").shape == (50, 64, 3)


def test_a_list_of_images_named_absolutely_and_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, "a/x.png", "b/x.png")
    (tmp_path / "list.txt").write_text(f"a/x.png\n{tmp_path / 'b/x.png'}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    annotate(open_sources(["list.txt"]), Path("out")).keep()
    assert files_in(tmp_path / "out/annotated") == ["a/x.png", "b/x.png"]


def test_a_path_that_begins_with_two_slashes(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a/sub/x.png", "b/x.png")
    annotate(open_sources([f"/{tmp_path}/a", tmp_path / "b"]), tmp_path / "out").keep()
    assert files_in(tmp_path / "out/annotated") == ["a/sub/x.png", "b/x.png"]


def test_names_that_only_climbing_makes_equal_get_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, "in/x.png", "x.png")
    monkeypatch.chdir(tmp_path)
    annotate(open_sources(["in/x.png", "in/../x.png"]), Path("out")).keep()
    assert files_in(tmp_path / "out/annotated") == ["x-2.png", "x.png"]


def test_a_kind_that_cannot_hold_colours_becomes_a_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.pgm"), np.zeros((48, 64), np.uint8))
    annotate(open_sources([tmp_path / "x.pgm"]), tmp_path / "out").keep()
    assert files_in(tmp_path / "out") == ["annotated/x.pgm.png"]


def test_a_glob_that_climbs_does_not_take_the_results_out_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "x.png"), picture(0))
    monkeypatch.chdir(tmp_path)
    annotate(open_sources(["*/../x.png"]), Path("out")).keep()
    assert files_in(tmp_path / "out") == ["annotated/a/x.png"]


def test_what_is_dropped_is_gone_and_what_was_whole_stays(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / name, [0, 40]) for name in ("a.mp4", "b.mp4")]
    sources = open_sources(videos)
    annotations = annotate(sources, tmp_path / "out")
    annotations.end(sources[0])
    annotations.drop()
    assert files_in(tmp_path / "out") == ["a.annotated.mp4"]
