"""Images are found where they are, and none gets the labels of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from spt_deploy.datasets.locate import Located, Named, locate


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def located(top: Path, names: dict[str, list[str]]) -> Located:
    """What is found of these names in annotation files at these paths."""
    entries = [
        Named(top / file, name, ((top / file).parent / "images", (top / file).parent))
        for file, listed in names.items()
        for name in listed
    ]
    return locate(entries, top)


def found_of(top: Path, names: dict[str, list[str]]) -> list[str | None]:
    """The path of each below ``top``; None where there is none."""
    images = located(top, names).images
    return [image.relative_to(top).as_posix() if isinstance(image, Path) else None for image in images]


def test_an_image_that_is_gone_does_not_get_the_file_of_another_folder(tmp_path: Path) -> None:
    make(tmp_path, "images/cam1/2.png", "images/cam2/1.png", "images/cam2/2.png", "images/cam3/1.png")
    listed = {"a.xml": ["cam1/1.png", "cam1/2.png", "cam2/1.png"]}
    assert found_of(tmp_path, listed) == [None, "images/cam1/2.png", "images/cam2/1.png"]
    where = f"{tmp_path / 'images'}, or into another folder of {tmp_path}"
    assert located(tmp_path, listed).images[0] == f"its image 'cam1/1.png' is missing; put it into {where}"


def test_an_image_that_is_gone_does_not_get_the_file_of_another_task(tmp_path: Path) -> None:
    make(tmp_path, "a/images/f1.jpg", "b/images/f0.jpg", "b/images/f1.jpg")
    listed = {f"{task}/x.xml": ["f0", "f1"] for task in ("a", "b", "c")}
    assert found_of(tmp_path, listed) == [None, "a/images/f1.jpg", "b/images/f0.jpg", "b/images/f1.jpg", None, None]


def test_beside_its_file_an_image_is_found_before_others(tmp_path: Path) -> None:
    make(tmp_path, "a/frames/f0.jpg", "b/frames/f0.jpg")
    assert found_of(tmp_path, {"a/x.xml": ["f0"], "b/x.xml": ["f0"]}) == ["a/frames/f0.jpg", "b/frames/f0.jpg"]
    assert located(tmp_path, {"x.xml": ["f0"]}).images == [
        f"the image 'f0' could be {tmp_path / 'a/frames/f0.jpg'} or {tmp_path / 'b/frames/f0.jpg'}; "
        "remove the one that it is not"
    ]


def test_what_two_entries_could_mean_is_neithers_unless_they_say_the_same(tmp_path: Path) -> None:
    make(tmp_path, "photos/1.png", "photos/2.png")
    images = located(tmp_path, {"a.xml": ["cam1/1.png", "cam2/1.png", "cam2/2.png", "./cam2/2.png"]}).images
    why = f"two images that are listed could be {tmp_path / 'photos/1.png'}; give each image a folder of its own"
    assert images == [why, why, tmp_path / "photos/2.png", tmp_path / "photos/2.png"]
    twice = located(tmp_path, {"a.xml": ["1.png"], "copy of a.xml": ["1.png"]}).images
    assert twice[0] == (
        f"the image '1.png' could be {tmp_path / 'photos/1.png'}, as '1.png' of {tmp_path / 'copy of a.xml'}; "
        "keep one of these files"
    )
    assert isinstance(twice[1], str)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "data/a.png"),
        ("day/a.png", "photos/day/a.png"),
        ("data/upload/7/a.png", "photos/a.png"),
        ("/srv/data/upload/a.png", "a.png"),
        ("C:/photos/a.png", "images/a.png"),
        ("frame_7", "frames/frame_7.JPG"),
        ("frame.7", "frames/frame.7.jpg"),
        ("Day/IMG_1.JPG", "photos/day/img_1.jpg"),
    ],
)
def test_folders_may_have_other_names_and_names_no_suffix(tmp_path: Path, name: str, file: str) -> None:
    make(tmp_path, file, "other/b.png")
    found = located(tmp_path, {"a.json": [name]})
    assert found.images == [tmp_path / file]
    is_elsewhere = "/" in name and "day" not in name.lower()
    note = f"a.json has its images in other folders: {name} is taken to be {file}"
    assert found.notes == ((note,) if is_elsewhere else ())


def test_a_source_may_be_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "day/1.png", "night/1.png")
    monkeypatch.chdir(tmp_path)
    entries = [Named(Path("xml/a.xml"), f"{place}/1.png", (Path("xml/images"),)) for place in ("night", "day")]
    assert locate(entries, Path()).images == [Path("night/1.png"), Path("day/1.png")]


@pytest.mark.parametrize("name", ["", ".", "/", "a.txt"])
def test_what_is_no_image_has_none(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.txt", "b.png")
    assert found_of(tmp_path, {"a.xml": [name]}) == [None]
