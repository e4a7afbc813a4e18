"""Sparse data sets: the right images, in the same format, with what was said of them."""

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
from spt_deploy.cli.data import FORMAT_NAMES
from spt_deploy.datasets.dataset import Broken
from spt_deploy.datasets.formats import FORMATS, read_data
from spt_deploy.datasets.rewrite import place_padded
from spt_deploy.errors import InputError, OutputError, UsageError
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.samples import Key, Sample, Samples
from spt_deploy.workflows.sparse_data import SparseData, make_padded, make_sparse, object_ratio
from tests.spt_deploy.datasets.data_formats import (
    HEIGHT,
    WIDTH,
    Picture,
    Thing,
    Writer,
    make_truth,
    write_bdd,
    write_bdd_of_images,
    write_coco,
    write_voc,
    write_voc_by_folder,
    write_voc_of_cvat,
    write_yolo,
)
from tests.spt_deploy.training.support import COLOURS, SIZE, make_image_folder

# name, how it is written, whether it has outlines
DATA: list[tuple[str, Writer, bool]] = [
    ("coco", write_coco, True),
    ("coco of Roboflow", lambda f, t: write_coco(f, t, "roboflow"), True),
    ("coco with boxes only", lambda f, t: write_coco(f, t, outlines=False), False),
    ("yolo", write_yolo, True),
    ("yolo of Roboflow with boxes only", lambda f, t: write_yolo(f, t, "roboflow", outlines=False), False),
    ("yolo with lists", lambda f, t: write_yolo(f, t, "list"), True),
    ("voc in a folder above", lambda f, t: write_voc(f / "VOC2012", t) and f, True),
    ("voc of CVAT", write_voc_of_cvat, True),
    ("voc of Roboflow", write_voc_by_folder, False),
    ("voc with XML in a folder", lambda f, t: write_voc_by_folder(f, t, "images", "annotations"), False),
    ("voc with boxes only", lambda f, t: write_voc(f, t, outlines=False), False),
    ("bdd", write_bdd, False),
]
both = pytest.mark.parametrize(("write", "outlines"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])


@pytest.fixture
def truth() -> dict[str, list[Picture]]:
    return make_truth(train=10, val=6)


@both
def test_sparse_keeps_the_images_with_few_pixels_in_objects(
    tmp_path: Path, truth: dict[str, list[Picture]], write: Writer, outlines: bool
) -> None:
    source = write(tmp_path / "data", truth)
    before = read_data(source)
    made = make_sparse(source, tmp_path / "sparse", 0.2)
    after = read_data(tmp_path / "sparse")
    assert (after.format, after.class_names) == (before.format, before.class_names)
    assert after.broken == ()
    for split, pictures in truth.items():
        ratios = [picture.ratio(outlines) for picture in pictures]
        np.testing.assert_allclose([object_ratio(r) for r in before.splits[split]], ratios, atol=1e-9)
        kept = [p.name for p, ratio in zip(pictures, ratios, strict=True) if ratio < 0.2]
        assert 0 < len(kept) < len(pictures)
        assert [r.path.stem for r in after.splits[split]] == kept
        count = made.splits[split]
        assert (count.images, count.kept) == (len(pictures), len(kept))
        assert count.without_objects == sum(not p.things for p in pictures)
        assert count.mean_ratio == pytest.approx(np.mean([r for r in ratios if r < 0.2]))
        assert list(count.histogram) == [sum(int(10 * r) == i for r in ratios) for i in range(10)]
        old = {r.path.name: r for r in before.splits[split]}
        for record in after.splits[split]:
            ours, theirs = record.objects, old[record.path.name].objects
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.mask((HEIGHT, WIDTH)), theirs.mask((HEIGHT, WIDTH)))
            assert record.path.samefile(old[record.path.name].path)  # a link costs no space


def test_sparse_keeps_the_images_of_bdd_with_a_file_an_image(tmp_path: Path, truth: dict[str, list[Picture]]) -> None:
    test_sparse_keeps_the_images_with_few_pixels_in_objects(tmp_path, truth, write_bdd_of_images, False)


@both
def test_padding_puts_the_image_in_the_upper_left_of_black(
    tmp_path: Path, truth: dict[str, list[Picture]], write: Writer, outlines: bool
) -> None:
    source = write(tmp_path / "data", truth)
    make_padded(source, tmp_path / "padded")
    before, after = read_data(source), read_data(tmp_path / "padded")
    assert (after.format, after.class_names, after.broken) == (before.format, before.class_names, ())
    for old, new in zip(before.train + before.val, after.train + after.val, strict=True):
        assert old.objects is not None
        assert new.objects is not None
        np.testing.assert_array_equal(new.objects.boxes, old.objects.boxes)
        assert object_ratio(new) == pytest.approx(object_ratio(old) / 4)
        image = cv2.imread(str(new.path))
        assert image is not None
        assert image.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        np.testing.assert_array_equal(image[:HEIGHT, :WIDTH], cv2.imread(str(old.path)))
        assert not image[HEIGHT:].any()
        assert not image[:, WIDTH:].any()


@pytest.mark.parametrize("write", [write_voc, write_bdd], ids=["voc", "bdd"])
def test_a_part_that_lacks_a_class_has_the_classes_of_the_whole(tmp_path: Path, write: Writer) -> None:
    truth = make_truth()
    truth = {  # all that has objects has them everywhere
        split: [replace(p, things=tuple(replace(t, box=(0, 0, WIDTH, HEIGHT)) for t in p.things)) for p in pictures]
        for split, pictures in truth.items()
    }
    for split in truth:
        truth[split][1] = Picture(f"{split}_001", (Thing("rider", (2, 2, 8, 8)),))
    source = write(tmp_path / "data", truth)
    for path in [*source.rglob("*.json"), *source.rglob("*.xml")]:
        path.write_text(path.read_text().replace("person", "ant").replace("rider", "zebra").replace("car", "mouse"))
    make_sparse(source, tmp_path / "sparse", 0.2)
    whole, part = read_data(source), read_data(tmp_path / "sparse")
    assert {label for record in part.train for label in record.labels or ()} == {2}
    assert part.class_names == whole.class_names == ("ant", "mouse", "zebra")


def test_an_image_folder_becomes_sparse_by_its_boxes(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data", train=8, val=6)
    made = make_sparse(source, tmp_path / "sparse", 0.1)
    after = read_data(tmp_path / "sparse", "classify")
    for split, records in read_data(source, "classify").splits.items():
        sides = [r.objects.boxes[0, 2:] - r.objects.boxes[0, :2] for r in records if r.objects is not None]
        kept = [r.path.relative_to(source) for r, s in zip(records, sides, strict=True) if s[0] * s[1] / SIZE**2 < 0.1]
        assert [r.path.relative_to(tmp_path / "sparse") for r in after.splits[split]] == kept
        assert made.splits[split].kept == len(kept)
    assert all(r.objects is not None and len(r.objects) == 1 for r in after.train)


def test_in_a_padded_image_folder_without_boxes_the_image_is_the_object(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data", train=2, val=1, boxes=False)
    make_padded(source, tmp_path / "padded")
    data = read_data(tmp_path / "padded", "classify")
    assert data.class_names == tuple(COLOURS)
    for record in data.train + data.val:
        assert record.objects is not None
        assert record.objects.boxes.tolist() == [[0, 0, SIZE, SIZE]]
        assert object_ratio(record) == 0.25


def test_images_of_one_name_in_folders_of_a_class_have_their_own_boxes(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data", train=2, val=1, boxes=False)
    for place, side in (("near", SIZE), ("far", 3 * SIZE)):
        (source / "train/red" / place).mkdir()
        cv2.imwrite(str(source / "train/red" / place / "000.png"), np.zeros((side, side, 3), dtype=np.uint8))
    make_padded(source, tmp_path / "padded")
    make_sparse(tmp_path / "padded", tmp_path / "sparse", 0.3)
    for out in ("padded", "sparse"):
        data = read_data(tmp_path / out, "classify")
        boxes = {
            r.path.relative_to(tmp_path / out).as_posix(): r.objects.boxes.tolist() for r in data.train if r.objects
        }
        assert len(boxes) == 2 * len(COLOURS) + 2
        assert boxes.pop("train/red/far/000.png") == [[0, 0, 3 * SIZE, 3 * SIZE]]
        assert all(of_image == [[0, 0, SIZE, SIZE]] for of_image in boxes.values())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".pgm", ".ppm"])
def test_padding_an_image_says_nothing_on_stderr(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    grey = np.full((8, 8), 200, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / f"image{suffix}"), grey if suffix == ".pgm" else np.stack([grey] * 3, axis=2))
    place_padded(tmp_path / f"image{suffix}", tmp_path / f"padded{suffix}")
    assert capfd.readouterr() == ("", "")  # OpenCV warns there of an option that an encoder does not know
    assert cv2.imread(str(tmp_path / f"padded{suffix}")).shape == (16, 16, 3)


@pytest.mark.parametrize("place", ["val/images", "val"])
def test_tiny_imagenets_flat_val_stays_flat(tmp_path: Path, place: str) -> None:
    source = make_image_folder(tmp_path / "data", train=3, val=3)
    flat = source / place
    flat.mkdir(exist_ok=True)
    lines = []
    for name in COLOURS:
        for index, line in enumerate((source / "val" / name / "boxes.txt").read_text().splitlines()):
            (source / "val" / name / f"{index:03}.png").rename(flat / f"{name}{index}.png")
            lines.append("\t".join([f"{name}{index}.png", name, *line.split("\t")[1:]]))
        (source / "val" / name / "boxes.txt").unlink()
        (source / "val" / name).rmdir()
    (source / "val/val_annotations.txt").write_text("\n".join(lines), encoding="utf-8")
    before = read_data(source, "classify")
    assert [before.class_names[r.label or 0] for r in before.val] == [n for n in COLOURS for _ in range(3)]
    make_padded(source, tmp_path / "padded")
    after = read_data(tmp_path / "padded", "classify")
    for old, new in zip(before.val, after.val, strict=True):
        assert (new.path.name, new.label) == (old.path.name, old.label)
        assert new.objects is not None
        assert old.objects is not None
        assert new.objects.boxes.tolist() == old.objects.boxes.tolist()


def test_a_broken_image_is_left_out_up_to_the_share(tmp_path: Path, truth: dict[str, list[Picture]]) -> None:
    source = write_bdd(tmp_path / "data", truth)  # has no sizes: the images are opened
    (source / "images/100k/train/train_001.png").write_bytes(b"no image")
    for make in (make_sparse, make_padded):
        made = make(source, tmp_path / make.__name__)
        assert len(made.broken) == 1
        assert "train_001.png" in made.broken[0]
        assert "train_001" not in {r.path.stem for r in read_data(tmp_path / make.__name__).train}
        with pytest.raises(InputError, match="more than the 0% that may be left out"):
            make(source, tmp_path / "none", max_broken=0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "make_padded", "make_sparse"]  # nothing half done


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc, write_bdd])
def test_what_does_not_lie_in_its_image_does_not_lie_in_the_padded_one(
    tmp_path: Path, truth: dict[str, list[Picture]], write: Writer
) -> None:
    stray = Thing("car", (WIDTH + 4, 4, WIDTH + 20, 20))
    first, *others = truth["train"]
    source = write(tmp_path / "data", truth | {"train": [replace(first, things=(stray, *first.things)), *others]})
    make_padded(source, tmp_path / "padded")
    padded = read_data(tmp_path / "padded", "detect")
    preprocessing = Preprocessing.for_task("detect", (64, 64))
    read = [Samples(data.train, preprocessing, classes=3)[Key(0, 0)] for data in (read_data(source, "detect"), padded)]
    if write is write_bdd:  # the file does not say how large its images are: the whole image is left out
        assert isinstance(read[0], Broken)
        assert first.name not in {record.path.stem for record in padded.train}
        return
    before, after = read
    assert isinstance(before, Sample)
    assert isinstance(after, Sample)
    assert before.box_labels.tolist() == after.box_labels.tolist()
    assert len(after.boxes) == len(first.things)
    objects = padded.train[0].objects
    assert objects is not None
    assert not objects.mask((2 * HEIGHT, 2 * WIDTH))[:, WIDTH:].any()


@pytest.mark.parametrize("make", [make_sparse, make_padded])
def test_an_image_that_needs_no_xml_file_gets_none(tmp_path: Path, make: Callable[..., SparseData]) -> None:
    pictures = {split: [picture for picture in of if picture.things] for split, of in make_truth().items()}
    source = write_voc_by_folder(tmp_path / "data", pictures)
    (source / "labelmap.txt").write_text("car:128,0,0::\n", encoding="utf-8")
    (source / "train" / f"{pictures['train'][0].name}.xml").unlink()
    made = make(source, tmp_path / "out")
    assert made.broken == ()
    empty = [record for record in read_data(tmp_path / "out").train if not record.objects]
    assert [record.path.stem for record in empty] == [pictures["train"][0].name]


@pytest.mark.parametrize("write", [write_coco, lambda f, t: write_yolo(f, t, outlines=False), write_bdd])
def test_what_was_left_out_is_not_written(tmp_path: Path, write: Writer) -> None:
    small, inverted = Thing("car", (4, 4, 12, 12)), Thing("car", (20, 20, 9, 9))
    large = Thing("car", (0, 0, WIDTH, HEIGHT))
    train = [Picture(f"train_{i:03}", (small, inverted) if i < 2 else (large,)) for i in range(40)]
    source = write(tmp_path / "data", {"train": train, "val": [Picture("val_000", (small,))]})
    assert len(read_data(source).broken) == 2  # of 40 images, which is less than a twentieth
    made = make_sparse(source, tmp_path / "sparse")
    assert made.splits["train"].kept == 2
    after = read_data(tmp_path / "sparse")  # where it would be every image
    assert after.broken == ()
    assert [r.objects.boxes.tolist() for r in after.train if r.objects is not None] == [[[4, 4, 12, 12]]] * 2


@pytest.mark.parametrize("make", [make_sparse, make_padded])
def test_an_image_whose_boxes_are_of_another_is_left_out(tmp_path: Path, make: Callable[..., SparseData]) -> None:
    source = make_image_folder(tmp_path / "data", train=10, val=2)  # does not say how large its images are
    path = source / "train/green/boxes.txt"
    path.write_text(path.read_text() + f"000.png\t{SIZE}\t{SIZE}\t{2 * SIZE}\t{2 * SIZE}\n")
    (sentence,) = make(source, tmp_path / "out").broken
    assert "green/000.png is 40 x 40 pixels and the box 40, 40, 80, 80" in sentence
    assert not (tmp_path / "out/train/green/000.png").exists()


def test_an_image_whose_run_lengths_cannot_be_drawn_is_left_out_of_the_padded_ones(
    tmp_path: Path, truth: dict[str, list[Picture]]
) -> None:
    source = write_coco(tmp_path / "data", truth)
    path = source / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "0"}  # a run of no pixel
    content["annotations"][1]["segmentation"] = {"counts": [HEIGHT * WIDTH]}
    path.write_text(json.dumps(content))
    made = make_padded(source, tmp_path / "padded")
    assert len(made.broken) == 2
    assert "train_000" not in {r.path.stem for r in read_data(tmp_path / "padded").train}


def test_an_image_that_is_too_large_for_its_kind_when_padded_is_left_out(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data", train=2, val=1, boxes=False)
    cv2.imwrite(str(source / "train/green/long.webp"), np.zeros((1, 9000, 3), dtype=np.uint8))  # WebP has 16383 at most
    made = make_padded(source, tmp_path / "padded")
    (sentence,) = made.broken
    assert sentence.startswith(f"{source / 'train/green/long.webp'} is 9000 x 1 pixels, and padded")
    assert len(read_data(tmp_path / "padded", "classify").train) == 2 * len(COLOURS)


def test_a_class_of_which_no_image_is_left_is_said_before_training_says_it(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data", train=2, val=1, boxes=False)
    (source / "val/green/000.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no val image of the class green can be used; put one there, or leave"):
        make_padded(source, tmp_path / "padded")
    assert not (tmp_path / "padded").exists()


def test_what_cannot_be_meant_is_said_before_anything_is_written(
    tmp_path: Path, truth: dict[str, list[Picture]]
) -> None:
    source = write_coco(tmp_path / "data", truth)
    with pytest.raises(OutputError, match="data is there already; choose another folder"):
        make_sparse(source, source)
    with pytest.raises(OutputError, match=r"data/sparse lies in .*data, which is only read; choose a folder beside it"):
        make_padded(source, source / "sparse")
    with pytest.raises(UsageError, match=r"max_ratio is 20; expected a share"):
        make_sparse(source, tmp_path / "out", 20)
    plain = make_image_folder(tmp_path / "plain", train=2, val=1, boxes=False)
    with pytest.raises(InputError, match="does not say where its objects lie"):
        make_sparse(plain, tmp_path / "out")
    boxed = make_image_folder(tmp_path / "boxed", train=2, val=1)
    with pytest.raises(
        InputError, match=r"no train image has less than 1% of its pixels in objects; raise --max-ratio"
    ):
        make_sparse(boxed, tmp_path / "out", 0.01)
    assert not (tmp_path / "out").exists()


def test_an_image_outside_the_data_set_is_not_taken_along(tmp_path: Path, truth: dict[str, list[Picture]]) -> None:
    source = write_coco(tmp_path / "data", truth)
    path = source / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("train_001.png", "../../outside.png"))
    (source / "train2017/train_001.png").rename(tmp_path / "outside.png")
    with pytest.raises(InputError, match=r"outside\.png lies outside"):
        make_sparse(source, tmp_path / "out")


def test_the_commands_print_counts_and_the_distribution(tmp_path: Path, truth: dict[str, list[Picture]]) -> None:
    source = write_voc(tmp_path / "data", truth)
    done = CliRunner().invoke(main, ["data", "sparse", str(source), str(tmp_path / "sparse")])
    assert done.exit_code == 0, done.output
    assert f"{source} is Pascal VOC XML (ImageSets/Main/train.txt and ImageSets/Main/val.txt)" in done.stderr
    assert "of 10 images have less than 25 % of their pixels in objects" in done.stdout
    assert "  0-10 %" in done.stdout
    assert done.stdout.endswith(f"{tmp_path / 'sparse'}: voc\n")
    done = CliRunner().invoke(main, ["data", "pad", str(source), str(tmp_path / "padded"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["splits"]["train"]["kept"] == 10
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(main, ["data", "sparse", str(tmp_path / "empty"), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "is no data set of a known format; looked for" in done.stderr


def test_the_commands_know_every_format() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES
