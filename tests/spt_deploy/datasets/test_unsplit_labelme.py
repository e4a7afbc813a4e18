"""labelme's files: every shape has its pixels, and what cannot be used is named."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.heap import Unsplit
from spt_deploy.datasets.unsplit import find_unsplit
from spt_deploy.errors import InputError, notes_of
from tests.spt_deploy.datasets.data_formats import make_truth
from tests.spt_deploy.datasets.unsplit_formats import write_labelme


def shape(kind: str | None, *points: tuple[float, float], label: str = "car", **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], **more}


def write(folder: Path, *shapes: dict[str, Any], name: str = "a", **more: Any) -> Path:
    """An image of 40 x 60 pixels and its file."""
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
    content = {"shapes": list(shapes), "imagePath": f"{name}.png", "imageHeight": 40, "imageWidth": 60, **more}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def found_in(folder: Path, *, broken: tuple[str, ...] = ()) -> Unsplit:
    """What is found, with just these faults."""
    found = find_unsplit(folder, max_broken=1)
    assert found is not None
    assert len(found.broken) == len(broken)
    for fault, text in zip(found.broken, broken, strict=True):
        assert text in fault.reason
    return found


def test_a_circle_has_its_box_and_area(tmp_path: Path) -> None:
    write(tmp_path, shape("circle", (30, 20), (36, 28)))
    (annotation,) = found_in(tmp_path).content["annotations"]
    assert annotation["bbox"] == pytest.approx([20, 10, 20, 20])
    ring = np.array(annotation["segmentation"][0], np.float32).reshape(-1, 2)
    assert cv2.contourArea(ring) == pytest.approx(math.pi * 100, rel=6e-3)


def test_a_rectangle_is_a_box_and_a_turned_one_an_outline(tmp_path: Path) -> None:
    write(tmp_path, shape("rectangle", (50, 30), (10, 5)), shape("rotation", (20, 5), (30, 15), (20, 25), (10, 15)))
    box, turned = found_in(tmp_path).content["annotations"]
    assert box["bbox"] == [10, 5, 40, 25]
    assert "segmentation" not in box
    assert turned["bbox"] == [10, 5, 20, 20]
    assert turned["segmentation"] == [[20, 5, 30, 15, 20, 25, 10, 15]]


def test_a_mask_over_the_edge_is_cut_and_one_with_a_polygon_of_its_group_drawn_together(tmp_path: Path) -> None:
    picture = base64.b64encode(cv2.imencode(".png", np.full((10, 10), 255, np.uint8))[1].tobytes()).decode()
    write(
        tmp_path,
        shape("mask", (-4, -3), (5, 6), mask=picture),
        shape("mask", (30, 20), (39, 29), mask=picture, group_id=7),
        shape("polygon", (50, 20), (55, 20), (55, 29), (50, 29), group_id=7),
    )
    cut, both = found_in(tmp_path).content["annotations"]
    assert (cut["bbox"], cut["area"]) == ([0, 0, 6, 7], 42)
    assert both["bbox"] == [30, 20, 25, 10]
    assert both["area"] == 100 + 45


def test_without_a_size_the_image_says_it_and_lines_have_no_area(tmp_path: Path) -> None:
    more = {"imageHeight": None, "imageWidth": None}
    write(tmp_path, shape(None, (1, 1), (9, 1), (9, 9)), shape("line", (1, 1), (9, 9)), shape("point", (2, 2)), **more)
    found = found_in(tmp_path)
    assert found.content["images"] == [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    assert len(found.content["annotations"]) == 1
    assert found.notes[0] == "2 lines and points, which have no area: left out"


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    corners = (1, 1), (9, 1), (9, 9)
    write(
        tmp_path,
        shape("polygon", *corners),
        shape("polygon", (1, 1), (9, 9)),
        shape("cuboid", *corners),
        shape("polygon", *corners, label=""),
        shape("mask", (1, 1), (2, 2), mask="bm90IGEgcGljdHVyZQ=="),
        shape("mask", (1, 1), mask=None),
        shape("polygon", (1, 1), (math.nan, 1), (9, 9)),
        "a text",  # type: ignore[arg-type]
    )
    for name, path in (("b", "gone.png"), ("c", "a.png")):
        write(tmp_path, name=name, imagePath=path, imageData="iVBORw0KGgo=")
        (tmp_path / f"{name}.png").unlink()
    (tmp_path / "d.json").write_text('{"shapes": [', encoding="utf-8")
    (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "e.png").write_bytes((tmp_path / "a.png").read_bytes())
    found = found_in(
        tmp_path,
        broken=(
            "a.json: a shape called 'car' has the shape_type 'polygon' with 2 points",
            "a shape called 'car' has the shape_type 'cuboid' with 3 points",
            "a shape called '' has no label",
            "a shape called 'car' has a mask that is no picture",
            "a shape called 'car' has not the fields of a shape",
            "a shape called 'car' has the point [nan, 1]; expected 2 numbers",
            "a shape called '' has no label",
            "b.json is of 'gone.png', which is not there; its picture is in the file alone",
            "c.json is of",
            "d.json is no JSON",
        ),
    )
    assert len(found.content["annotations"]) == 1
    assert found.notes[0] == "1 image without a JSON file: left out"


def test_images_in_a_folder_beside_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "images", shape("rectangle", (1, 1), (9, 9)), imagePath="../images/a.png")
    (tmp_path / "labels").mkdir()
    path.rename(tmp_path / "labels/a.json")
    assert [item.image for item in found_in(tmp_path).items] == [tmp_path / "images/a.png"]


def test_train_names_the_command_and_both_splits_are_no_heap(tmp_path: Path) -> None:
    pictures = make_truth(train=6)["train"]
    write_labelme(tmp_path / "heap", pictures)
    with pytest.raises(InputError, match=r"heap is labelme's JSON without train and val \(train_000\.json\)") as caught:
        read_data(tmp_path / "heap")
    assert "spt-deploy data split" in notes_of(caught.value)[0]
    for split in ("train", "val"):
        write_labelme(tmp_path / "both" / split, pictures)
    with pytest.raises(InputError, match=r"is split already, into train/ and val/, and labelme's JSON is read as a"):
        find_unsplit(tmp_path / "both")
    with pytest.raises(InputError, match="is split already, into"):  # and no list of all formats
        read_data(tmp_path / "both")


def test_files_without_an_object_are_refused_and_two_of_one_name_are_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, name="x")
    with pytest.raises(InputError, match=r"is labelme's JSON of 2 images without a box or outline; draw some"):
        find_unsplit(tmp_path)
    for folder in ("a", "b", "c"):
        write(tmp_path / folder, shape("rectangle", (50, 30), (10, 5)), name="x", imagePath="y.png")
        if folder != "c":
            (tmp_path / folder / "x.png").unlink()
    with pytest.raises(InputError, match=r"^2 of 3 images of"):
        find_unsplit(tmp_path)
