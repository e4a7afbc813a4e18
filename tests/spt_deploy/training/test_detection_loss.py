from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.heads import DetectHead, DetectMaps
from spt_deploy.training.assignment import assign
from spt_deploy.training.detection_loss import BOX_WEIGHT, detection_loss, quality_focal_loss
from tests.tolerances import MODEL, assert_close

CLASSES = ("apple", "pear", "plum")
SIZE = 64
BOXES = (
    torch.tensor([[4.0, 6.0, 30.0, 28.0], [30.0, 10.0, 60.0, 60.0]]),
    torch.empty(0, 4),
    torch.tensor([[10.0, 10.0, 50.0, 40.0]]),
)
LABELS = (torch.tensor([0, 2]), torch.empty(0, dtype=torch.int64), torch.tensor([1]))
NO_CROWD = tuple(torch.zeros(len(b), dtype=torch.bool) for b in BOXES)


def make_head() -> DetectHead:
    torch.manual_seed(0)
    return DetectHead(ModelConfig(BackboneConfig.from_name("spt_micro"), "detect", CLASSES, head_width=16))


def make_maps(head: DetectHead, batch: int = 3, seed: int = 0) -> DetectMaps:
    random = torch.Generator().manual_seed(seed)
    widths = zip((4, 8, 16, 32), (32, 64, 128, 256), strict=True)
    return head.maps(tuple(torch.randn(batch, SIZE // s, SIZE // s, c, generator=random) for s, c in widths))


def direct(maps: DetectMaps, boxes: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> float:
    """The loss as the papers write it, in Python's float64, one point at a time."""
    corners = maps.corners
    class_loss = box_loss = total = 0.0
    for image in range(len(boxes)):
        scores = maps.logits[image].sigmoid()
        found = assign(scores, corners[image], maps.points, 8, boxes[image], labels[image])
        for p in range(len(maps.points)):
            n = int(found.objects[p])
            for c in range(len(CLASSES)):
                y = float(found.quality[p]) if n >= 0 and int(labels[image][n]) == c else 0.0
                s = 1 / (1 + math.exp(-float(maps.logits[image, p, c])))
                class_loss -= abs(y - s) ** 2 * ((1 - y) * math.log(1 - s) + y * math.log(s))
            if n >= 0:
                x0, y0, x1, y1 = corners[image, p].double().tolist()
                a0, b0, a1, b1 = boxes[image][n].double().tolist()
                common = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
                union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - common
                around = (max(x1, a1) - min(x0, a0)) * (max(y1, b1) - min(y0, b0))
                box_loss += float(found.quality[p]) * (1 - common / union + (around - union) / around)
                total += float(found.quality[p])
    return (class_loss + BOX_WEIGHT * box_loss) / max(1.0, total)


@torch.no_grad()
def test_the_loss_is_the_papers_formula_point_by_point() -> None:
    maps = make_maps(make_head())
    loss = detection_loss(maps, BOXES, LABELS, NO_CROWD)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor(direct(maps, BOXES, LABELS)), MODEL)


def test_quality_focal_loss_is_least_at_its_target() -> None:
    targets = torch.tensor([0.0, 0.3, 0.9, 1.0])
    logits = torch.linspace(-8, 8, 1601)
    best = quality_focal_loss(logits[:, None].expand(-1, 4), targets.expand(1601, -1)).argmin(0)
    assert_close(logits[best].sigmoid(), targets, {torch.float32: 5e-3})


def test_every_parameter_has_a_gradient_even_without_objects() -> None:
    head = make_head()
    nothing = tuple(torch.empty(0, 4) for _ in range(3)), tuple(torch.empty(0, dtype=torch.int64) for _ in range(3))
    loss = detection_loss(make_maps(head), *nothing, tuple(torch.empty(0, dtype=torch.bool) for _ in range(3)))
    loss.backward()
    assert loss > 0  # the background has its loss
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_background_in_a_crowd_has_no_loss_for_its_class_and_the_crowd_is_not_learnt() -> None:
    head = make_head()
    crowd_box, label = torch.tensor([[8.0, 8.0, 40.0, 40.0]]), 1
    given = [torch.tensor([label])], [torch.tensor([True])]
    maps = make_maps(head, batch=1)
    logits = maps.logits.detach().requires_grad_()
    distances = maps.distances.detach().requires_grad_()
    detection_loss(maps._replace(logits=logits, distances=distances), [crowd_box], *given).backward()
    assert logits.grad is not None
    assert distances.grad is not None
    inside = ((maps.points >= 8) & (maps.points <= 40)).all(1)
    assert (logits.grad[0, inside, label] == 0).all()
    others = [c for c in range(len(CLASSES)) if c != label]
    assert (logits.grad[0, inside][:, others] > 0).all()
    assert (logits.grad[0, ~inside] > 0).all()
    assert (distances.grad == 0).all()


def test_an_object_inside_a_crowd_is_learnt_all_the_same() -> None:
    head, box = make_head(), torch.tensor([[10.0, 10.0, 34.0, 34.0]])
    maps = make_maps(head, batch=1)
    logits = maps.logits.detach().requires_grad_()
    boxes = torch.cat([box, torch.tensor([[0.0, 0.0, 64.0, 64.0]])])
    labels, crowd = torch.tensor([1, 1]), torch.tensor([False, True])
    detection_loss(maps._replace(logits=logits), [boxes], [labels], [crowd]).backward()
    found = assign(maps.logits[0].sigmoid(), maps.corners[0], maps.points, 8, box, torch.tensor([1]))
    assert logits.grad is not None
    assert ((logits.grad[0, :, 1] != 0) == (found.objects == 0)).all()


@pytest.mark.parametrize(
    "box", [[20.0, 20.0, 20.0, 20.0], [20.0, 20.0, 21e0, 20.0], [20.0, 20.0, 20.001, 20.001], [0.0, 0.0, 1e5, 1e5]]
)
def test_gradients_are_finite_at_degenerate_boxes_and_extreme_predictions(box: list[float]) -> None:
    maps = make_maps(make_head(), batch=1)
    for value, reach in ((0.0, 1.0), (100.0, 0.0), (-100.0, 1e6)):
        logits = torch.full_like(maps.logits, value).requires_grad_()
        distances = torch.full_like(maps.distances, reach).requires_grad_()
        extreme = maps._replace(logits=logits, distances=distances)
        loss = detection_loss(extreme, [torch.tensor([box])], [torch.tensor([0])], [torch.tensor([False])])
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert distances.grad is not None
        assert logits.grad.isfinite().all()
        assert distances.grad.isfinite().all()


def test_the_loss_is_float32_whatever_the_network_computes_in() -> None:
    maps = make_maps(make_head())
    half = maps._replace(logits=maps.logits.bfloat16())
    loss = detection_loss(half, BOXES, LABELS, NO_CROWD)
    assert loss.dtype == torch.float32
    assert_close(loss, detection_loss(maps, BOXES, LABELS, NO_CROWD), {torch.float32: 2e-2})
