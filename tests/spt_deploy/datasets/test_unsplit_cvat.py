"""CVAT's own file: every shape has its pixels, images are found, and what cannot be used is named."""

from __future__ import annotations

import math
import re
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
from tests.spt_deploy.datasets.unsplit_formats import write_cvat

BOX = '<box label="car" xtl="10" ytl="5" xbr="50" ybr="30"/>'


def write_image(path: Path) -> None:
    """Of 40 x 60 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))


def image_of(name: str, *shapes: str, more: str = 'width="60" height="40"') -> str:
    return f'<image id="0" name="{name}" {more}>{"".join(shapes)}</image>'


def write_xml(path: Path, *images: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = "<meta><task><size>1</size><labels><label><name>car</name></label></labels></task></meta>"
    text = f"<?xml version='1.0' encoding='utf-8'?>\n<annotations><version>1.1</version>{meta}{''.join(images)}"
    path.write_text(text + "</annotations>", encoding="utf-8")
    return path


def found_in(folder: Path, *, broken: tuple[str, ...] = ()) -> Unsplit:
    """What is found, with just these faults."""
    found = find_unsplit(folder, max_broken=1)
    assert found is not None
    assert len(found.broken) == len(broken)
    for fault, text in zip(found.broken, broken, strict=True):
        assert text in fault.reason
    return found


def objects_of(folder: Path, *shapes: str) -> list[dict[str, Any]]:
    """The annotations of one image with these shapes."""
    write_image(folder / "images/a.png")
    write_xml(folder / "annotations.xml", image_of("a.png", *shapes))
    annotations: list[dict[str, Any]] = found_in(folder).content["annotations"]
    return annotations


def ring_of(annotation: dict[str, Any]) -> np.ndarray:
    return np.array(annotation["segmentation"][0], np.float32).reshape(-1, 2)


def test_a_box_is_a_box_and_a_turned_one_an_outline(tmp_path: Path) -> None:
    turned = '<box label="car" xtl="10" ytl="10" xbr="30" ybr="14" rotation="30.0"/>'
    box, outline = objects_of(tmp_path, BOX, turned)
    assert box["bbox"] == [10, 5, 40, 25]
    assert "segmentation" not in box
    ring = ring_of(outline)
    assert cv2.contourArea(ring) == pytest.approx(80, rel=1e-4)
    assert ring.mean(0) == pytest.approx([20, 12], abs=1e-4)
    along = ring[1] - ring[0]  # the upper edge falls to the right: clockwise on the screen
    assert math.degrees(math.atan2(along[1], along[0])) == pytest.approx(30, abs=1e-3)


def test_an_ellipse_has_its_box_and_area(tmp_path: Path) -> None:
    (flat,) = objects_of(tmp_path / "flat", '<ellipse label="car" cx="30" cy="20" rx="10" ry="5"/>')
    assert flat["bbox"] == pytest.approx([20, 15, 20, 10])
    assert cv2.contourArea(ring_of(flat)) == pytest.approx(math.pi * 50, rel=6e-3)
    (upright,) = objects_of(tmp_path / "up", '<ellipse label="car" cx="30" cy="20" rx="10" ry="5" rotation="90"/>')
    assert upright["bbox"] == pytest.approx([25, 10, 10, 20])


def test_the_runs_of_a_mask_go_row_by_row_and_a_mask_over_the_edge_is_cut(tmp_path: Path) -> None:
    first = '<mask label="car" rle="1, 2, 3" left="4" top="6" width="3" height="2"/>'
    cut = '<mask label="car" rle="0, 100" left="-4" top="-3" width="10" height="10"/>'
    small, edge = objects_of(tmp_path, first, cut)
    assert (small["bbox"], small["area"]) == ([5, 6, 2, 1], 2)
    assert (edge["bbox"], edge["area"]) == ([0, 0, 6, 7], 42)


def test_outlines_of_one_group_are_one_object_and_boxes_are_not(tmp_path: Path) -> None:
    box = BOX.replace("/>", ' group_id="3"/>')
    (box_1, box_2, part, other, both) = objects_of(
        tmp_path,
        box,
        box,
        '<polygon label="car" group_id="3" points="1,1;5,1;5,5;1,5"/>',
        '<polygon label="bus" group_id="3" points="1,1;5,1;5,5"/>',
        '<polygon label="car" group_id="4" points="50,20;55,20;55,29;50,29"/>',
        '<mask label="car" group_id="4" rle="0, 100" left="30" top="20" width="10" height="10"/>',
    )
    assert box_1["bbox"] == box_2["bbox"] == [10, 5, 40, 25]
    assert (part["bbox"], other["bbox"]) == ([1, 1, 4, 4], [1, 1, 4, 4])
    assert part["category_id"] != other["category_id"]
    assert (both["bbox"], both["area"]) == ([30, 20, 25, 10], 100 + 45)


@pytest.mark.parametrize(
    ("name", "text", "crowd"), [("is_crowd", "true", 1), ("difficult", "1", 1), ("colour", "1", 0)]
)
def test_an_attribute_says_what_is_not_to_be_learnt(tmp_path: Path, name: str, text: str, crowd: int) -> None:
    attribute = f'<attribute name="{name}">{text}</attribute>'
    (found,) = objects_of(tmp_path, BOX.replace("/>", f">{attribute}</box>"))
    assert found["iscrowd"] == crowd


@pytest.mark.parametrize(
    ("file", "name", "more"),
    [
        ("images/a.png", "a.png", ""),
        ("images/day/a.png", "day/a.png", ""),
        ("images/night/a.png", "a.png", 'subset="night"'),
        ("a.png", "a.png", 'subset="default"'),
        ("my photos/day/a.png", "day/a.png", ""),
        ("images/frame_000007.PNG", "frame_000007", ""),
        ("frames/frame_000007.jpg", "frame_000007", ""),
        ("images/a.png", "C:\\photos\\a.png", ""),
        ("images/a.png", "../../a.png", 'subset="../.."'),
    ],
)
def test_an_image_is_found_where_cvat_or_a_user_puts_it(tmp_path: Path, file: str, name: str, more: str) -> None:
    write_image(tmp_path / file)
    write_image(tmp_path / "my photos/night/other.png")
    write_xml(tmp_path / "annotations.xml", image_of(name, BOX, more=more))
    found = found_in(tmp_path)
    assert [item.image for item in found.items] == [tmp_path / file]
    assert found.content["images"] == [{"id": 1, "file_name": Path(file).name, "height": 40, "width": 60}]
    assert "1 image that no XML file names: left out" in found.notes


def test_the_file_may_be_named_and_several_are_read_together(tmp_path: Path) -> None:
    for task in ("morning", "noon"):
        write_image(tmp_path / task / f"images/{task}.png")
        file = write_xml(tmp_path / task / "annotations.xml", image_of(f"{task}.png", BOX))
    assert [item.image.name for item in found_in(file).items] == ["noon.png"]
    assert [item.image.name for item in found_in(tmp_path).items] == ["morning.png", "noon.png"]


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    shapes = (
        BOX,
        '<box label="car" xtl="10" ytl="5" xbr="x" ybr="30"/>',
        '<polygon label="car" points="1,1;9,9"/>',
        '<polygon label="" points="1,1;9,1;9,9"/>',
        '<mask label="car" rle="3, 4" left="0" top="0" width="3" height="3"/>',
        '<mask label="car" rle="" left="0" top="0" width="3" height="3"/>',
        '<mask label="car" rle="9.0" left="0" top="0" width="3" height="3"/>',
        '<mask label="car" rle="9223372036854775807, 9223372036854775807" left="0" top="0" width="3" height="3"/>',
        BOX.replace("/>", ' rotation="x"/>'),
        '<polyline label="car" points="1,1;9,9"/>',
        '<tag label="car"/>',
    )
    write_image(tmp_path / "images/a.png")
    for folder in ("x", "y"):
        write_image(tmp_path / folder / "b.png")
    entries = (image_of("a.png", *shapes), image_of("a.png", BOX), image_of("gone.png"), image_of("b.png"))
    write_xml(tmp_path / "annotations.xml", *entries)
    found = found_in(
        tmp_path,
        broken=(
            "'a.png': a box called 'car' has the xtl, ytl, xbr, ybr ['10', '5', 'x', '30']; expected 4 numbers",
            "'a.png': a polygon called 'car' has 2 points",
            "'a.png': a polygon called '' has no label",
            "'a.png': a mask called 'car' has runs of 7 pixels for a box of 3 x 3",
            "'a.png': a mask called 'car' has the rle ''; expected whole numbers",
            "'a.png': a mask called 'car' has the rle '9.0'; expected whole numbers",
            "'a.png': a mask called 'car' has runs of 18446744073709551614 pixels",
            "'a.png': a box called 'car' has the rotation ['x']; expected 1 number",
            "image 'a.png' is listed twice",
            f"its image 'gone.png' is missing; put it into {tmp_path / 'images'}, or into another folder of {tmp_path}",
            f"the image 'b.png' could be {tmp_path / 'x/b.png'} or {tmp_path / 'y/b.png'}; remove the one",
        ),
    )
    assert len(found.content["annotations"]) == 1
    assert found.notes[1] == "2 tags, lines, points and the like, which are no boxes or outlines: left out"


USELESS = [
    (
        ['<track id="0" label="car"></track>'],
        r"annotations\.xml is CVAT's XML of a video, .* export it as CVAT for images",
    ),
    (
        [image_of("a.png", '<tag label="car"/>'), image_of("b.png", '<tag label="car"/>')],
        r"annotations\.xml has tags, lines or points alone, .* ImageNet 1\.0",
    ),
    ([], r"annotations\.xml is CVAT's XML and lists no image; export the task that has them"),
    (
        [image_of("a.png", '<skeleton label="car"/>'), image_of("b.png")],
        r"annotations\.xml is CVAT's XML of 2 images without a box or outline; draw some",
    ),
    (["<image>"], r"annotations\.xml is damaged: .*; export it again"),
]


@pytest.mark.parametrize(("images", "sentence"), USELESS)
def test_a_file_without_an_object_is_refused_and_left_out_beside_other_files(
    tmp_path: Path, images: list[str], sentence: str
) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "alone/images" / name)
    write_xml(tmp_path / "alone/annotations.xml", *images)
    with pytest.raises(InputError, match=sentence):
        find_unsplit(tmp_path / "alone")
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        write_image(tmp_path / "classes" / name)
    write_xml(tmp_path / "classes/annotations.xml", *(image.replace('name="', 'name="cat/') for image in images))
    found = found_in(tmp_path / "classes")
    assert (found.format, len(found.items)) == ("folder", 4)
    assert re.search(f"^not read: .*{sentence}", found.notes[0])


@pytest.mark.parametrize("encoding", ["foo", "shift_jis"])
def test_an_encoding_that_nobody_reads_is_damage(tmp_path: Path, encoding: str) -> None:
    write_image(tmp_path / "images/a.png")
    path = write_xml(tmp_path / "annotations.xml", image_of("a.png", BOX))
    path.write_text(path.read_text(encoding="utf-8").replace("utf-8", encoding), encoding="utf-8")
    with pytest.raises(InputError, match=r"annotations\.xml is damaged: .*encoding.*; export it again"):
        find_unsplit(tmp_path)


def test_images_that_are_gone_are_counted_also_where_their_names_are_equal(tmp_path: Path) -> None:
    names = [f"frame_{n}" for n in range(10)]
    for task in range(3):
        write_xml(tmp_path / f"{task}/annotations.xml", *(image_of(name, BOX) for name in names))
    for name in names:
        write_image(tmp_path / f"2/images/{name}.png")
    with pytest.raises(InputError, match=r"^20 of 30 images of"):
        find_unsplit(tmp_path)


def test_subsets_with_one_flat_folder_are_not_mixed_up(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/b.png")
    images = [image_of("a.png", BOX, more=f'subset="{subset}"') for subset in ("day", "night")]
    write_xml(tmp_path / "annotations.xml", *images, image_of("b.png", BOX))
    found = found_in(tmp_path, broken=("two images that are listed could be",) * 2)
    assert [item.image.name for item in found.items] == ["b.png"]


def test_images_of_one_name_but_for_the_suffix_are_two(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / f"images/{name}")
    write_xml(tmp_path / "annotations.xml", image_of("a.png", BOX), image_of("a.jpg", BOX))
    assert sorted(item.name.name for item in found_in(tmp_path).items) == ["a.jpg", "a.png"]


def test_train_names_the_command_and_both_splits_are_no_heap(tmp_path: Path) -> None:
    write_cvat(tmp_path / "heap", make_truth(train=6)["train"])
    with pytest.raises(InputError, match=r"is CVAT's XML without train and val \(annotations\.xml\)") as caught:
        read_data(tmp_path / "heap")
    assert "spt-deploy data split" in notes_of(caught.value)[0]
    images = []
    for subset in ("Train", "Validation"):
        write_image(tmp_path / f"both/images/{subset}/{subset}.png")
        images.append(image_of(f"{subset}.png", BOX, more=f'subset="{subset}" width="60" height="40"'))
    write_xml(tmp_path / "both/annotations.xml", *images)
    with pytest.raises(InputError, match="is split already, into Train and Validation, and CVAT's XML is read as"):
        find_unsplit(tmp_path / "both")
    with pytest.raises(InputError, match="is split already, into"):  # and no list of all formats
        read_data(tmp_path / "both")
