"""What a user may name, and what each name means."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest

from spt_deploy.errors import SourceError, UsageError
from spt_deploy.streaming.frames import Failure, Frame, Sampling, Source, VideoSource
from spt_deploy.streaming.sources import open_sources
from tests.spt_deploy.streaming.support import picture, write_video


def write_image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture(number))[1].tobytes())
    return path


def read(sources: list[Source], sampling: Sampling | None = None) -> list[str]:
    """The frames as paths, a failure with an exclamation mark."""
    items = [item for source in sources for item in source.frames(sampling or Sampling())]
    return [f"{'!' if isinstance(item, Failure) else ''}{item.source}" for item in items]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, one of them in a subfolder, a broken one, a video and a text; it is the working directory."""
    write_image(tmp_path / "in/b.png")
    write_image(tmp_path / "in/a.jpg")
    write_image(tmp_path / "in/sub/c.png")
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    (tmp_path / "in/notes.nfo").write_text("words\n" * 99, encoding="utf-8")
    write_video(tmp_path / "in/v.mp4", [0, 40])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_image_is_one_frame_without_a_time(folder: Path) -> None:
    (frame,) = open_sources(["in/a.jpg"])[0].frames(Sampling())
    assert isinstance(frame, Frame)
    assert (frame.source, frame.index, frame.time) == ("in/a.jpg", 0, None)
    assert frame.image.shape == (48, 64, 3)


def test_a_folder_is_its_images_at_any_depth_and_a_broken_one_fails_in_its_place(folder: Path) -> None:
    (source,) = open_sources(["in"])
    assert source.total() == 4
    assert read([source]) == ["in/a.jpg", "in/b.png", "!in/broken.png", "in/sub/c.png"]


@pytest.mark.parametrize("sign", ["predictions.jsonl", ".infer.json"])
def test_what_an_earlier_run_wrote_is_no_input(sign: str, folder: Path) -> None:
    for out in ("in", "in/sub"):
        Path(out, sign).touch()
        write_image(Path(out, "annotated/deeper/a.jpg"))
        write_image(Path(out, "crops/car/a.jpg"))
    write_image(folder / "in/other/annotated/d.jpg")
    assert read(open_sources(["in"])) == [
        "in/a.jpg",
        "in/b.png",
        "!in/broken.png",
        "in/other/annotated/d.jpg",
        "in/sub/c.png",
    ]
    assert read(open_sources(["in/crops"])) == ["in/crops/car/a.jpg"]


def test_a_folder_that_may_not_be_read_fails_after_those_that_may(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def locked(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)  # root may read anything
    sources = open_sources(["in"])
    assert read(sources) == ["in/a.jpg", "in/b.png", "!in/broken.png", "!in/sub"]
    (failure,) = sources[1].frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason == "folder in/sub cannot be read: Permission denied"


def test_a_glob_is_its_matches_and_keeps_videos_apart(folder: Path) -> None:
    assert read(open_sources(["in/*.png"])) == ["in/b.png", "!in/broken.png"]
    assert read(open_sources(["in/**/*.png"])) == ["in/b.png", "!in/broken.png", "in/sub/c.png"]
    sources = open_sources(["in/[abv].*"])
    assert [isinstance(source, VideoSource) for source in sources] == [False, True]
    assert read(sources) == ["in/a.jpg", "in/b.png", "in/v.mp4", "in/v.mp4"]


def test_a_glob_of_any_depth_is_not_lost_in_links_that_lead_back_up(folder: Path) -> None:
    for name in ("in/loop", "in/sub/loop"):  # two are enough for more paths than anybody can count
        Path(name).symlink_to(folder)
    found = ["in/b.png", "!in/broken.png", "in/sub/c.png"]
    assert read(open_sources(["in/**/*.png"])) == read(open_sources(["**/*.png"])) == found
    assert read(open_sources(["**/sub/**"])) == read(open_sources(["i*/sub/**/**/*.png"])) == ["in/sub/c.png"]
    absolute = read(open_sources([f"{folder}/**/*.png"]))
    assert [name.replace(f"{folder}/", "") for name in absolute] == found


def test_standard_input_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "sources.txt").write_text("-\n", encoding="utf-8")
    with pytest.raises(UsageError, match="standard input is named more than once"):
        open_sources(["-", tmp_path / "sources.txt"])


def test_a_list_may_begin_with_a_mark_and_lie_in_a_folder_whose_name_is_a_glob(folder: Path) -> None:
    write_image(folder / "g[1]/a.jpg")
    listed = folder / "g[1]/sources.txt"
    listed.write_text("# what follows\na.jpg\n*.jpg\n", encoding="utf-8-sig")
    assert read(open_sources(["g[1]/sources.txt"])) == ["g[1]/a.jpg", "g[1]/a.jpg"]


def test_a_file_whose_name_is_a_glob_is_that_file(folder: Path) -> None:
    write_image(folder / "in/[1].png")
    assert read(open_sources(["in/[1].png"])) == ["in/[1].png"]


def test_an_image_under_another_name_is_an_image(folder: Path) -> None:
    write_image(folder / "in/a.png").rename(folder / "in/picture.dat")
    assert read(open_sources(["in/picture.dat"])) == ["in/picture.dat"]


@pytest.mark.parametrize("content", [b"words\n" * 99, cv2.imencode(".png", picture(0))[1].tobytes()])
def test_a_name_that_is_not_utf_8_is_a_name(content: bytes, folder: Path) -> None:
    name = os.fsdecode(b"in/caf\xe9")
    Path(name).write_bytes(content)
    assert [item.removeprefix("!") for item in read(open_sources([name]))] == [name]


def test_a_pipe_that_has_a_name_is_not_read_without_its_beginning(folder: Path) -> None:
    os.mkfifo("in/pipe")
    (failure,) = open_sources(["in/pipe"])[0].frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("in/pipe is no regular file; write what a pipe holds into standard input")


def test_sampling_counts_the_images_of_a_folder(folder: Path) -> None:
    assert read(open_sources(["in"]), Sampling(start=1, stride=2)) == ["in/b.png", "in/sub/c.png"]
    assert read(open_sources(["in"]), Sampling(max_frames=1)) == ["in/a.jpg"]


def test_a_text_file_fails_in_its_turn_after_the_good_one_before_it(folder: Path) -> None:
    sources = open_sources(["in/a.jpg", "in/notes.nfo", "in/b.png"])
    assert read(sources) == ["in/a.jpg", "!in/notes.nfo", "in/b.png"]
    (failure,) = sources[1].frames(Sampling())
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("in/notes.nfo ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("in/none.mp4", "there is no file or folder in/none.mp4; name an image, a folder, a glob, a video file"),
        ("in/*.gif", "no file matches in/*.gif"),
        ("in/best.onnx", "in/best.onnx is a model by its name, and no source; give it with --model in/best.onnx"),
        ("rtps://me:secret@host/a", "there is no file or folder rtps://me:***@host/a"),
        ("rtsp://me:secret@[::1/a", "[::1/a is no address: Invalid IPv6 URL; expected one such as rtsp://"),
        ("//[x", "no file matches //[x"),
        ("empty", "folder empty has no images; expected files ending in"),
    ],
)
def test_a_name_that_means_nothing_is_refused_at_once(name: str, sentence: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "in/best.onnx").touch()
    with pytest.raises(SourceError) as error:
        open_sources(["in/a.jpg", name])
    assert str(error.value).startswith(sentence)


def test_a_folder_without_images_says_how_videos_are_named(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").touch()
    with pytest.raises(SourceError, match=r"videos are named by themselves, or by a glob such as 'videos/\*\.mp4'$"):
        open_sources(["videos"])
