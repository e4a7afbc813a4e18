"""Meters of two processes, put together, say what one meter of all images says."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spt_deploy.datasets.dataset import Record
from spt_deploy.datasets.objects import Objects
from spt_deploy.errors import InputError
from spt_deploy.model.backbone import BackboneOutput
from spt_deploy.model.network import ModelOutput
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.loader import Batch
from spt_deploy.training.meters import BoxPrecision, LabelPrecision, Meter, NoMeter, TopAccuracy

CLASSES = 6
SOURCE = (100, 200)  # height and width; letterboxed into 64 x 64 it is 32 x 64, 16 pixels from the top
PREPROCESSING = Preprocessing((64, 64), "letterbox")


def make_batch(image_ids: list[int], targets: Tensor | None = None) -> Batch:
    count = len(image_ids)
    targets = torch.zeros(count, CLASSES) if targets is None else targets
    return Batch(
        paths=tuple(Path(f"{i}.png") for i in image_ids),
        image_ids=tuple(image_ids),
        source_sizes=(SOURCE,) * count,
        images=torch.zeros(count, 3, 64, 64),
        labels=targets.argmax(1),
        targets=targets,
        boxes=(torch.empty(0, 4),) * count,
        box_labels=(torch.empty(0, dtype=torch.int64),) * count,
        crowd=(torch.empty(0, dtype=torch.bool),) * count,
        masks=torch.zeros(count, 64, 64, dtype=torch.uint8),
        has_mask=torch.zeros(count, dtype=torch.bool),
    )


def output(**named: Tensor) -> ModelOutput:
    return ModelOutput(named, BackboneOutput((), None, (), (), ()))


def records(count: int) -> tuple[Record, ...]:
    """Each with two objects in source pixels, but for the last, which has none, and one nothing is known of."""
    random = np.random.default_rng(0)
    known = []
    for i in range(count):
        corner = random.uniform(0, [150, 60], (2, 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 40, (2, 2))], axis=1)
        known.append(Record(Path(f"{i}.png"), objects=Objects.from_boxes(boxes, random.integers(0, 3, 2)), image_id=i))
    known.append(Record(Path("empty.png"), objects=Objects.from_boxes([], []), image_id=count))
    return (*known, Record(Path("unknown.png"), image_id=count + 1))


def detections(record: Record, jitter: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """K boxes in pixels of the input: the record's own, moved a little, and some noise."""
    random = np.random.default_rng((seed, record.image_id))
    truth = record.objects or Objects.from_boxes([], [])
    moved = PREPROCESSING.boxes_to_input(truth.boxes, SOURCE) + random.normal(0, jitter, (len(truth), 4))
    corner = random.uniform(0, 40, (8 - len(truth), 2))
    noise = np.concatenate([corner, corner + 10], axis=1)
    labels = np.concatenate([truth.labels, random.integers(0, 3, len(noise))])
    scores = np.concatenate([random.uniform(0.2, 1, len(truth)), random.uniform(0, 0.4, len(noise))])
    boxes = np.concatenate([moved, noise])
    return torch.tensor(boxes).float(), torch.tensor(scores).float(), torch.tensor(labels)


def detected(rows: list[Record], jitter: float = 0.5, seed: int = 0) -> tuple[ModelOutput, Batch]:
    parts = [torch.stack(part) for part in zip(*(detections(r, jitter, seed) for r in rows), strict=True)]
    return output(**dict(zip(("boxes", "scores", "labels"), parts, strict=True))), make_batch(
        [r.image_id for r in rows]
    )


def labelled(ids: list[int]) -> tuple[ModelOutput, Batch]:
    random = torch.Generator().manual_seed(ids[0])
    targets = (torch.rand(len(ids), CLASSES, generator=random) < 0.3).float()
    return output(logits=torch.randn(len(ids), CLASSES, generator=random) + targets), make_batch(ids, targets)


RECORDS = records(9)
BATCHES: dict[str, tuple[Callable[[], Meter], list[tuple[ModelOutput, Batch]]]] = {
    "classify": (TopAccuracy, [labelled([i, i + 1, i + 2]) for i in range(0, 12, 3)]),
    "multilabel": (LabelPrecision, [labelled([i, i + 1, i + 2]) for i in range(0, 12, 3)]),
    "detect": (
        lambda: BoxPrecision(PREPROCESSING, RECORDS),
        [detected(list(RECORDS[i : i + 3])) for i in (0, 3, 6, 9)],
    ),
}


def test_the_accuracy_of_a_class_is_that_of_its_images() -> None:
    meter = TopAccuracy()
    truth, said = torch.tensor([0, 0, 0, 2, 2, 5]), torch.tensor([0, 1, 0, 2, 1, 4])
    one_hot = torch.nn.functional.one_hot
    meter.update(output(logits=one_hot(said, CLASSES).float()), make_batch([*range(6)], one_hot(truth, CLASSES)))
    assert meter.per_class() == {0: 2 / 3, 2: 1 / 2, 5: 0.0}
    assert meter.result()["top1"] == 3 / 6


@pytest.mark.parametrize("task", BATCHES)
def test_two_halves_merged_equal_the_whole(task: str) -> None:
    make, batches = BATCHES[task]
    whole, first, second, merged = make(), make(), make(), make()
    for place, (said, batch) in enumerate(batches):
        whole.update(said, batch)
        (first, second)[place % 2].update(said, batch)
    for half in (second, first):  # whichever comes first
        merged.merge(pickle.loads(pickle.dumps(half.state())))
    assert merged.result() == whole.result()
    assert merged.per_class() == whole.per_class()
    assert 0 < min(whole.result().values()) < 1


@pytest.mark.parametrize("task", BATCHES)
def test_before_the_first_image_there_is_nothing_to_say(task: str) -> None:
    meter = BATCHES[task][0]()
    meter.merge(BATCHES[task][0]().state())
    assert meter.result() == {}
    assert meter.per_class() == {}


def test_top_accuracy_counts() -> None:
    meter = TopAccuracy()
    logits = torch.arange(CLASSES).float().expand(4, -1)  # class 5 is best, class 0 is sixth
    meter.update(output(logits=logits), make_batch([0, 1, 2, 3], torch.eye(CLASSES)[[5, 4, 1, 0]]))
    assert meter.result() == {"top1": 0.25, "top5": 0.75}


def test_boxes_are_compared_in_source_pixels() -> None:
    meter = BoxPrecision(PREPROCESSING, RECORDS)
    meter.update(*detected(list(RECORDS), jitter=0.0))
    result = meter.result()
    # The boxes themselves are above all noise but for a few; what counts is that they are found at every IoU.
    assert result["AP"] > 0.7
    assert result["AP"] == pytest.approx(result["AP50"])
    assert set(meter.per_class()) == {0, 1, 2}


def test_an_image_seen_twice_counts_once() -> None:
    once, twice = (BoxPrecision(PREPROCESSING, RECORDS) for _ in range(2))
    once.update(*detected(list(RECORDS)))
    for rows in (RECORDS, RECORDS[:4]):  # as when a sampler fills up the last process's share
        twice.update(*detected(list(rows)))
    assert twice.result() == once.result()


def test_what_is_wrong_on_an_image_of_which_nothing_is_known_counts_for_nothing() -> None:
    known, all_of_them = (BoxPrecision(PREPROCESSING, RECORDS) for _ in range(2))
    known.update(*detected(list(RECORDS[:-1])))
    all_of_them.update(*detected(list(RECORDS)))
    assert all_of_them.result() == known.result()


def test_predictions_in_the_letterbox_border_and_without_area_are_left_out() -> None:
    record = RECORDS[0]
    boxes = torch.tensor([[[0.0, 0.0, 60.0, 10.0], [30.0, 30.0, 30.0, 40.0], [1.0, float("nan"), 5.0, 40.0]]])
    said = output(boxes=boxes, scores=torch.ones(1, 3), labels=torch.zeros(1, 3, dtype=torch.int64))
    meter = BoxPrecision(PREPROCESSING, [record])
    meter.update(said, make_batch([record.image_id]))
    assert meter.result()["AP"] == 0.0
    assert all(len(found.boxes) == 0 for found in meter.state().values())


@pytest.mark.parametrize("task", ["multilabel", "detect"])
def test_images_that_hold_nothing_to_find_are_an_error(task: str) -> None:
    nothing: dict[str, tuple[Meter, Any]] = {
        "multilabel": (LabelPrecision(), (output(logits=torch.zeros(2, CLASSES)), make_batch([0, 1]))),
        "detect": (BoxPrecision(PREPROCESSING, RECORDS[9:10]), detected([RECORDS[9]])),
    }
    meter, batch = nothing[task]
    meter.update(*batch)
    with pytest.raises(InputError, match="validation images has"):
        meter.result()


def test_no_meter_measures_nothing() -> None:
    meter = NoMeter()
    meter.update(*labelled([0, 1]))
    meter.merge(None)
    assert meter.result() == {}
