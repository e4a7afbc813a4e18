from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spt_deploy.training.assignment import ALPHA, BETA, POINTS_PER_OBJECT, assign, points_inside
from spt_deploy.training.box_geometry import iou_matrix
from tests.tolerances import assert_close

CLASSES = 3


def grid(size: int = 96) -> Tensor:
    """Points of the three levels."""
    levels = []
    for stride in (8, 16, 32):
        line = (torch.arange(math.ceil(size / stride)) + 0.5) * stride
        levels.append(torch.cartesian_prod(line, line).flip(1))
    return torch.cat(levels)


def predictions(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random scores, and boxes around the points."""
    random = torch.Generator().manual_seed(seed)
    reach = 4 + 30 * torch.rand(len(points), 4, generator=random)
    boxes = torch.cat([points - reach[:, :2], points + reach[:, 2:]], dim=1)
    return torch.rand(len(points), CLASSES, generator=random), boxes


def objects(count: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(100 + seed)
    corner = 70 * torch.rand(count, 2, generator=random)
    side = 3 + 40 * torch.rand(count, 2, generator=random)
    return torch.cat([corner, corner + side], dim=1), torch.randint(CLASSES, (count,), generator=random)


def naive(
    scores: Tensor, predicted: Tensor, points: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[list[int], list[float]]:
    """The rules one point and one object at a time."""
    overlap = iou_matrix(boxes, predicted).tolist()
    claims: dict[int, list[int]] = {}
    t = [[0.0] * len(points) for _ in boxes]
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        half_width, half_height = max((x1 - x0) / 2, 4.0), max((y1 - y0) / 2, 4.0)
        inside = []
        for p, (x, y) in enumerate(points.tolist()):
            if abs(x - (x0 + x1) / 2) <= half_width and abs(y - (y0 + y1) / 2) <= half_height:
                inside.append(p)
                t[n][p] = scores[p, labels[n]].item() ** ALPHA * overlap[n][p] ** BETA
        for p in sorted(inside, key=lambda p: -t[n][p])[:POINTS_PER_OBJECT]:
            claims.setdefault(p, []).append(n)
    owner = [max(claims[p], key=lambda n: overlap[n][p]) if p in claims else -1 for p in range(len(points))]
    quality = [0.0] * len(points)
    for n in range(len(boxes)):
        mine = [p for p in range(len(points)) if owner[p] == n]
        best_t, best_u = max((t[n][p] for p in mine), default=0), max((overlap[n][p] for p in mine), default=0)
        for p in mine:
            quality[p] = t[n][p] / best_t * best_u if best_t else 0.0
    return owner, quality


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 7, 40])  # 40 objects share the points: claims meet
def test_assignment_equals_a_loop_over_points_and_objects(count: int, seed: int) -> None:
    points = grid()
    scores, predicted = predictions(points, seed)
    boxes, labels = objects(count, seed)
    found = assign(scores, predicted, points, 8, boxes, labels)
    owner, quality = naive(scores, predicted, points, boxes, labels)
    assert found.objects.tolist() == owner
    assert_close(found.quality, torch.tensor(quality))


def test_an_image_without_objects_is_background() -> None:
    points = grid()
    found = assign(*predictions(points, 0), points, 8, torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert (found.objects == -1).all()
    assert (found.quality == 0).all()


@pytest.mark.parametrize("place", [(0.0, 0.0), (15.9, 16.1), (40.0, 95.0), (95.5, 95.5)])
def test_an_object_smaller_than_the_stride_is_learnt_wherever_it_lies(place: tuple[float, float]) -> None:
    points = grid()
    scores, predicted = predictions(points, 1)
    boxes = torch.tensor([[place[0], place[1], place[0] + 0.5, place[1] + 0.5]])
    found = assign(scores, predicted, points, 8, boxes, torch.tensor([0]))
    assert (found.objects == 0).any()


def test_more_points_may_be_asked_for_than_there_are() -> None:
    points = grid(16)[:3]
    found = assign(*predictions(points, 0), points, 8, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([2]))
    assert found.objects.tolist() == [0, 0, 0]


def test_quality_is_highest_iou_at_the_best_point() -> None:
    points = grid()
    scores, predicted = predictions(points, 2)
    boxes, labels = objects(5, 2)
    found = assign(scores, predicted, points, 8, boxes, labels)
    overlap = iou_matrix(boxes, predicted)
    for n in range(5):
        mine = (found.objects == n).nonzero()[:, 0]
        assert 0 < len(mine) <= POINTS_PER_OBJECT
        assert_close(found.quality[mine].max(), overlap[n, mine].max())


def test_scores_far_below_float32_give_finite_quality() -> None:
    points = grid()
    _, predicted = predictions(points, 3)
    boxes, labels = objects(5, 3)
    for scores in (torch.zeros(len(points), CLASSES), torch.full((len(points), CLASSES), 1e-38)):
        quality = assign(scores, predicted, points, 8, boxes, labels).quality
        assert quality.isfinite().all()
        assert ((quality >= 0) & (quality <= 1)).all()


def test_a_point_on_the_edge_is_inside() -> None:
    box = torch.tensor([[4.0, 4.0, 12.0, 20.0]])
    points = torch.tensor([[4.0, 4.0], [12.0, 20.0], [3.9, 10.0], [8.0, 20.1]])
    assert points_inside(points, box, 0.0).tolist() == [[True, True, False, False]]
