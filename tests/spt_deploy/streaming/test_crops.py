"""Crops: the right pixels, under names that are safe and never taken twice."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.errors import UsageError
from spt_deploy.images import read_image
from spt_deploy.postprocess import Classification, Detection, Prediction
from spt_deploy.streaming.crops import Crops, class_folders
from spt_deploy.streaming.frames import Frame, Source
from spt_deploy.streaming.sources import open_sources
from tests.spt_deploy.streaming.support import Recording, facts_of, files_in, give, picture

NAMES = ("red", "a/b: c", "..")


@pytest.fixture
def source() -> Source:
    return Recording("street.mp4")


def crops_in(folder: Path, *sources: Source, resumes: bool = False) -> Crops:
    return Crops(folder, facts_of("detect", names=NAMES).model, sources, resumes)


def frame_of(name: str = "street.mp4", index: int = 0) -> Frame:
    """48 x 64 pixels, whose grey is their column."""
    image = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (48, 64, 3)).copy()
    return Frame(name, index, None, image)


def found(*boxes: tuple[float, float, float, float], label: int = 0) -> Prediction:
    return Prediction(detections=tuple(Detection(box, label, NAMES[label], 0.9) for box in boxes))


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((10.0, 5.0, 20.0, 15.0), (10, 20), 10),
        ((10.9, 5.9, 19.1, 14.1), (10, 20), 10),  # every pixel that the box touches
        ((-7.0, -7.0, 8.0, 8.0), (0, 8), 8),
        ((60.5, 40.0, 90.0, 90.0), (60, 64), 8),
        ((0.0, 0.0, 64.0, 48.0), (0, 64), 48),
    ],
)
def test_a_crop_is_the_pixels_of_the_box_in_the_picture(
    box: tuple[float, float, float, float], columns: tuple[int, int], rows: int, source: Source, tmp_path: Path
) -> None:
    give(crops_in(tmp_path / "out", source), source, frame_of(), found(box))
    (name,) = files_in(tmp_path / "out")
    image = read_image(tmp_path / "out" / name)
    assert image.shape == (rows, columns[1] - columns[0], 3)
    np.testing.assert_allclose(image[rows // 2, :, 0].astype(int), np.arange(*columns), atol=3)  # a JPEG


def test_a_box_outside_the_picture_is_left_out(source: Source, tmp_path: Path) -> None:
    crops = crops_in(tmp_path / "out", source)
    give(crops, source, frame_of(), found((70, 5, 80, 10), (5, -9, 9, -1), (64, 0, 65, 9)))
    assert crops.keep() == []
    assert not (tmp_path / "out").exists()


def test_names_say_class_source_frame_and_number_and_are_never_taken_twice(tmp_path: Path) -> None:
    box = (10.0, 5.0, 20.0, 15.0)
    a, b = Recording("a/street.mp4"), Recording("b/street.mp4")
    crops = crops_in(tmp_path / "out", a, b)
    give(crops, a, frame_of("a/street.mp4", 88), found(box, box))
    give(crops, a, frame_of("a/street.mp4", 88), found(box, label=1))
    give(crops, b, frame_of("b/street.mp4", 88), found(box))
    give(crops, a, frame_of("a/street.mp4", 89), found(box))
    give(crops_in(tmp_path / "out", a, b, resumes=True), a, frame_of("a/street.mp4", 88), found(box))
    assert crops.keep() == [tmp_path / "out/crops"]
    of_a = ["street-000088-1", "street-000088-2", "street-000088-3", "street-000089-1"]
    names = ["a_b_ c/street-000088-1", "red/street-2-000088-1", *(f"red/{name}" for name in of_a)]
    assert files_in(tmp_path / "out") == sorted(f"crops/{name}.jpg" for name in names)


def test_images_of_equal_names_have_crops_in_the_folders_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), picture(0))
    box = (10.0, 5.0, 20.0, 15.0)
    for _ in range(2):  # the second replaces the first
        (source,) = open_sources([tmp_path])
        crops = crops_in(tmp_path / "out", source)
        for name in ("a/1.png", "b/1.png"):
            give(crops, source, frame_of(str(tmp_path / name)), found(box))
        assert files_in(tmp_path / "out") == ["crops/red/a/1-000000-1.jpg", "crops/red/b/1-000000-1.jpg"]


def test_a_new_run_removes_the_crops_of_the_one_before_and_nothing_else(source: Source, tmp_path: Path) -> None:
    box = (10.0, 5.0, 20.0, 15.0)
    give(crops_in(tmp_path, source), source, frame_of(index=7), found(box, box, label=1))
    (tmp_path / "crops/a_b_ c/chosen.jpg").touch()
    again = crops_in(tmp_path, source)
    assert len(files_in(tmp_path / "crops")) == 3  # until there is an answer
    give(again, source, frame_of(index=8), found(box))
    give(again, source, frame_of(index=9), found(box))
    assert files_in(tmp_path / "crops") == ["a_b_ c/chosen.jpg", "red/street-000008-1.jpg", "red/street-000009-1.jpg"]


def test_what_is_written_stays_when_the_run_fails(source: Source, tmp_path: Path) -> None:
    crops = crops_in(tmp_path / "out", source)
    give(crops, source, frame_of(), found((10, 5, 20, 15), label=2))
    crops.drop()
    assert files_in(tmp_path / "out") == ["crops/_/street-000000-1.jpg"]


def test_a_classifier_has_no_crops(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this model's task is classify"):
        Crops(tmp_path, facts_of("classify").model, [])


def test_a_frame_without_detections_has_none(source: Source, tmp_path: Path) -> None:
    crops = crops_in(tmp_path / "out", source)
    give(crops, source, frame_of(), Prediction(classes=(Classification(0, "red", 0.9),)))
    assert crops.keep() == []


@given(st.lists(st.sampled_from(["a/b", "a:b", "A_b", "a_b-1", "a_b", "", ".", "car", "Car"]), unique=True))
def test_no_two_classes_share_a_folder(names: list[str]) -> None:
    folders = class_folders(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
