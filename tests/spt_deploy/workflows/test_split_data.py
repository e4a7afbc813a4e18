"""Both splits of what annotation tools export: every image once, with all that was said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.heap import Item
from spt_deploy.errors import InputError, OutputError, SptError, UsageError
from spt_deploy.training.report import Reports
from spt_deploy.wording import counted
from spt_deploy.workflows.split_data import choose, make_splits
from tests.spt_deploy.datasets.data_formats import NAMES, SPLITS, Picture, make_truth, write_bdd, write_coco, write_yolo
from tests.spt_deploy.datasets.test_formats import check_record, without_crowds, without_overlaps
from tests.spt_deploy.datasets.unsplit_formats import (
    write_coco_of_cvat,
    write_coco_of_label_studio,
    write_coco_of_roboflow,
    write_coco_without_val,
    write_cvat,
    write_labelme,
    write_voc_of_cvat,
    write_voc_of_kaggle,
    write_voc_of_labelimg,
    write_voc_without_lists,
    write_yolo_of_cvat,
    write_yolo_of_label_studio,
    write_yolo_of_labelimg,
    write_yolo_of_roboflow,
)
from tests.spt_deploy.training.support import make_image_folder

Writer = Callable[[Path, list[Picture]], None]

# how it is written, format, whether it has outlines
DATA: list[tuple[Writer, str, bool]] = [
    (write_coco_of_cvat, "coco", True),
    (write_coco_of_label_studio, "coco", True),
    (write_coco_of_roboflow, "coco", True),
    (write_coco_without_val, "coco", True),
    (write_yolo_of_label_studio, "yolo", True),
    (write_yolo_of_cvat, "yolo", True),
    (write_yolo_of_labelimg, "yolo", True),
    (write_yolo_of_roboflow, "yolo", True),
    (write_voc_without_lists, "voc", True),
    (write_voc_of_cvat, "voc", True),
    (write_voc_of_kaggle, "voc", False),
    (write_voc_of_labelimg, "voc", False),
    (write_labelme, "coco", True),
    (write_cvat, "coco", True),
]
IDS = [write.__name__.removeprefix("write_") for write, _, _ in DATA]


def pictures_of(format: str, outlines: bool = True, count: int = 10) -> list[Picture]:
    pictures = make_truth(train=count)["train"]
    if format == "yolo":
        return [without_crowds(picture) for picture in pictures]
    return [without_overlaps(picture) for picture in pictures] if format == "voc" and outlines else pictures


@pytest.mark.parametrize(("write", "format", "outlines"), DATA, ids=IDS)
def test_every_image_is_in_one_split_with_all_its_objects(
    tmp_path: Path, write: Writer, format: str, outlines: bool
) -> None:
    pictures = pictures_of(format, outlines)
    write(tmp_path / "exported", pictures)
    before = {path: path.read_bytes() for path in (tmp_path / "exported").rglob("*") if path.is_file()}
    made = make_splits(tmp_path / "exported", tmp_path / "out", 0.3)
    data = read_data(tmp_path / "out", "detect")
    assert data.format == made.format == format
    assert (len(data.train), len(data.val)) == (7, 3)
    assert data.broken == ()
    of_name = {picture.name: picture for picture in pictures}
    for record in (*data.train, *data.val):
        check_record(record, of_name.pop(record.path.stem), data.class_names, outlines, difficult=format == "voc")
    assert not of_name
    for split, records in data.splits.items():
        assert made.splits[split].images == len(records)
        assert made.splits[split].objects == sum(len(record.objects or ()) for record in records)
        assert sum(made.splits[split].classes.values()) == made.splits[split].objects
    assert before == {path: path.read_bytes() for path in before}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_classes_is_split_class_by_class_with_its_boxes(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "whole", train=10, val=2, boxes=True) / "train"
    made = make_splits(folder, tmp_path / "out")
    whole, data = read_data(tmp_path / "whole"), read_data(tmp_path / "out")
    assert data.class_names == whole.class_names
    assert made.splits["train"].classes == dict.fromkeys(data.class_names, 8)
    assert made.splits["val"].classes == dict.fromkeys(data.class_names, 2)
    of_name = {(record.path.parent.name, record.path.name): record for record in whole.train}
    for record in (*data.train, *data.val):
        same = of_name.pop((record.path.parent.name, record.path.name))
        assert record.label == same.label
        assert record.objects is not None
        assert same.objects is not None
        np.testing.assert_array_equal(record.objects.boxes, same.objects.boxes)
        assert record.path.samefile(same.path)
    assert not of_name


def test_the_train_folder_of_a_whole_without_val_is_taken(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "whole", train=5, val=1)
    (folder / "val").rename(folder / "test")
    made = make_splits(folder, tmp_path / "out")
    assert made.splits["train"].images + made.splits["val"].images == 15


def items_of(*names: str, group: str = "") -> list[Item]:
    return [Item(Path("/data", name), Path(name), group=group) for name in names]


def names_of(items: list[Item]) -> list[str]:
    return [item.name.as_posix() for item in items]


def test_last_takes_the_last_frames_of_each_folder_by_number() -> None:
    frames = items_of(*(f"a/frame_{n}.jpg" for n in range(1, 13)), *(f"b/{n}.jpg" for n in range(8, 12)))
    splits = choose(frames[::-1], 0.25, last=True)
    assert names_of(splits["val"]) == ["a/frame_10.jpg", "a/frame_11.jpg", "a/frame_12.jpg", "b/11.jpg"]
    assert sorted(names_of(splits["train"]) + names_of(splits["val"])) == sorted(names_of(frames))


@pytest.mark.parametrize("last", [True, False])
def test_augmented_copies_of_one_photo_stay_together(last: bool) -> None:
    items = items_of(*(f"{photo}_jpg.rf.{photo}{copy}abc.jpg" for photo in range(10) for copy in "xyz"))
    splits = choose(items, 0.2, last=last)
    photos = [{name.split("_")[0] for name in names_of(splits[split])} for split in SPLITS]
    assert [len(splits[split]) for split in SPLITS] == [24, 6]
    assert not photos[0] & photos[1]
    with pytest.raises(InputError, match="are copies of one photo; expected one for train and one for val"):
        choose(items[:3], 0.2, last=last)


def test_the_draw_is_that_of_names_and_seed() -> None:
    items = items_of(*(f"{n}.jpg" for n in range(40)))
    one = choose(items, 0.25, seed=3)
    assert len(one["val"]) == 10
    assert choose(items[::-1], 0.25, seed=3) == one
    assert choose(items, 0.25, seed=4) != one
    assert names_of(one["val"]) != names_of(choose(items, 0.25, last=True)["val"])


@pytest.mark.parametrize(("val", "count"), [(0.01, 1), (0.5, 1), (0.99, 2)])
def test_both_splits_have_one_of_each_class_at_least(val: float, count: int) -> None:
    items = items_of("a/1.jpg", "a/2.jpg", "a/3.jpg", group="a") + items_of("b/1.jpg", "b/2.jpg", group="b")
    splits = choose(items, val)
    assert [sum(item.group == "a" for item in splits["val"]), sum(item.group == "b" for item in splits["val"])] in (
        [count, 1],
        [2, 1],
    )
    with pytest.raises(InputError, match=r"the class b has one image, /data/b/1\.jpg; expected one for train and one"):
        choose(items[:-1], val)


def test_what_is_missing_is_said_and_what_is_known_is_kept(tmp_path: Path) -> None:
    write_yolo_of_label_studio(tmp_path / "yolo", pictures_of("yolo"))
    (tmp_path / "yolo/labels/train_005.txt").unlink()
    missing = 10 - len(list((tmp_path / "yolo/labels").iterdir()))
    (tmp_path / "yolo/labels/train_000.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 7 7\n", encoding="utf-8")
    said: list[str] = []
    made = make_splits(tmp_path / "yolo", tmp_path / "out", reports=Reports(said.append))
    assert f"{counted(missing, 'image')} of 10 without a label file: taken to hold no object" in said
    assert any("left out by training:" in line and f"{tmp_path / 'out'}" in line for line in said)
    assert len(made.broken) == 1

    write_voc_of_labelimg(tmp_path / "voc", pictures_of("voc", outlines=False))
    (tmp_path / "voc/train_003.xml").unlink()
    (tmp_path / "voc/train_004.png").unlink()
    made = make_splits(tmp_path / "voc", tmp_path / "out-voc", reports=Reports(said.append), max_broken=0.2)
    assert "1 image of 9 without an XML file: left out" in said
    assert made.splits["train"].images + made.splits["val"].images == 8
    assert len(made.broken) == 1
    assert "train_004.xml has no image of its name" in made.broken[0]


def test_keypoints_stay_keypoints(tmp_path: Path) -> None:
    write_yolo_of_roboflow(tmp_path / "pose", [without_crowds(p) for p in make_truth(train=4)["train"]])
    with (tmp_path / "pose/data.yaml").open("a", encoding="utf-8") as file:
        file.write("kpt_shape: [2, 2]\n")
    for label in (tmp_path / "pose/train/labels").iterdir():
        label.write_text("1 0.5 0.5 0.25 0.25 0.1 0.2 0.3 0.4\n", encoding="utf-8")
    made = make_splits(tmp_path / "pose", tmp_path / "out")
    assert not made.broken
    assert all(set(part.classes) == set(NAMES) for part in made.splits.values())
    data = read_data(tmp_path / "out")
    assert [r.objects.outlines for r in data.train if r.objects and len(r.objects)] == [None] * sum(
        bool(r.labels) for r in data.train
    )


def test_a_class_that_val_lacks_is_named(tmp_path: Path) -> None:
    first, *others = pictures_of("coco")  # the first has one of each class
    write_coco_of_cvat(tmp_path / "cvat", [first, *(replace(picture, things=()) for picture in others)])
    said: list[str] = []
    make_splits(tmp_path / "cvat", tmp_path / "out", reports=Reports(said.append))
    lacking = [line.split(":")[0] for line in said if "--seed" in line]
    assert lacking == [f"val has no {name}" for name in NAMES]


def test_what_cannot_be_split_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused: list[tuple[Callable[[Path], object], type[SptError], str]] = [
        (
            lambda f: write_coco(f, make_truth()),
            UsageError,
            r"is split already: it is COCO JSON \(annotations.*as it is",
        ),
        (lambda f: write_yolo(f, make_truth()), UsageError, r"is split already: it is YOLO labels"),
        (lambda f: write_bdd(f, make_truth()), UsageError, r"is split already: it is BDD100K JSON"),
        (make_image_folder, UsageError, r"is split already: it is an image folder"),
        (lambda f: f.mkdir(), InputError, r"is no data set without splits; looked for one COCO JSON file, YOLO labels"),
        (lambda f: f.touch(), InputError, r"is no data set without splits"),
        (
            lambda f: [write_coco_of_cvat(f / task, pictures_of("coco")) for task in ("day", "night")],
            InputError,
            r"has 2 data sets without splits in it, which cannot be split as one: day, night; split each",
        ),
        (
            lambda f: [write_coco_of_roboflow(f / task, pictures_of("coco")) for task in ("day", "night")],
            InputError,
            r"has 2 data sets without splits in it.*: day, night;",  # and no image folder of these classes
        ),
        (lambda f: None, InputError, r"there is no folder .*; name the folder of a data set"),
    ]
    for number, (write, kind, sentence) in enumerate(refused):
        folder = tmp_path / f"data-{number}"
        write(folder)
        with pytest.raises(kind, match=sentence):
            make_splits(folder, out)
        assert not out.exists()


def test_what_a_tool_left_out_is_asked_for(tmp_path: Path) -> None:
    write_yolo_of_label_studio(tmp_path / "yolo", pictures_of("yolo"))
    (tmp_path / "yolo/classes.txt").unlink()
    with pytest.raises(InputError, match=r"has YOLO labels and no names of classes; write them to classes\.txt, one a"):
        make_splits(tmp_path / "yolo", tmp_path / "out")
    write_coco_of_label_studio(tmp_path / "two", pictures_of("coco"))
    (tmp_path / "two/other.json").write_bytes((tmp_path / "two/result.json").read_bytes())
    with pytest.raises(UsageError, match=r"has 2 COCO JSON files \(other\.json, result\.json\); name the one to split"):
        make_splits(tmp_path / "two", tmp_path / "out")
    made = make_splits(tmp_path / "two/result.json", tmp_path / "out")
    assert made.splits["val"].images == 2
    (tmp_path / "two/classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "two/other.json").unlink()
    (tmp_path / "two/images/train_000.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"could be coco \(result\.json\), yolo \(images/.*\); say which with --format"
    ):
        make_splits(tmp_path / "two", tmp_path / "other")
    assert make_splits(tmp_path / "two", tmp_path / "other", format="yolo").format == "yolo"


def test_images_of_one_name_and_too_many_faults_are_refused(tmp_path: Path) -> None:
    write_yolo_of_labelimg(tmp_path / "yolo", pictures_of("yolo"))
    image = cv2.imread(str(tmp_path / "yolo/train_000.png"))
    cv2.imwrite(str(tmp_path / "yolo/train_000.jpg"), image)
    with pytest.raises(InputError, match=r"train_000\.jpg and .*train_000\.png would both be train_000; rename one"):
        make_splits(tmp_path / "yolo", tmp_path / "out")
    (tmp_path / "yolo/train_000.jpg").unlink()
    for n in range(5):
        (tmp_path / f"yolo/train_00{n}.txt").write_text("9 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"have broken annotations.*; the last one: .*the class 9, which has no name"):
        make_splits(tmp_path / "yolo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r"lies in .*, which is only read; choose a folder beside it"):
        make_splits(tmp_path / "yolo", tmp_path / "yolo/out")
    write_cvat(tmp_path / "cvat", pictures_of("cvat"))
    with pytest.raises(OutputError, match=r"cvat/out lies in .*cvat, which is only read; choose a folder beside it"):
        make_splits(tmp_path / "cvat/annotations.xml", tmp_path / "cvat/out")
    with pytest.raises(UsageError, match=r"val is 1; expected a share"):
        make_splits(tmp_path / "yolo", tmp_path / "out", 1)


def test_the_command_prints_each_class_and_how_to_go_on(tmp_path: Path) -> None:
    write_coco_of_cvat(tmp_path / "cvat", pictures_of("coco"))
    arguments = ["data", "split", str(tmp_path / "cvat"), str(tmp_path / "my data")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "is COCO JSON without train and val (annotations/instances_default.json)" in result.stderr
    rows = {cells[0]: cells[1:] for line in result.stdout.splitlines() if (cells := line.replace("│", " ").split())}
    assert rows["images"] == ["8", "2"]
    assert set(NAMES) <= rows.keys()
    assert f"next: spt-deploy train '{tmp_path / 'my data'}' --task detect" in result.stdout
    result = CliRunner().invoke(main, [*arguments[:-1], str(tmp_path / "other"), "--json", "--val", "0.5", "--last"])
    made = json.loads(result.stdout)
    assert [made["splits"][split]["images"] for split in SPLITS] == [5, 5]
    data = read_data(tmp_path / "other")
    assert [r.path.stem for r in data.val] == [f"train_00{n}" for n in range(5, 10)]
