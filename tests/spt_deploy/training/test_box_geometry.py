from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_deploy.training.box_geometry import areas, generalised_iou, iou_matrix
from tests.tolerances import assert_close

SIDE = 12  # pixels; boxes with whole coordinates can be counted pixel by pixel
coordinates = st.integers(0, SIDE)
box = st.tuples(coordinates, coordinates, coordinates, coordinates).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


def pixels(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def counted(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[float, float]:
    """IoU and GIoU by counting pixels; 0 where the pixels are none."""
    around = pixels((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    both, either = pixels(a) & pixels(b), pixels(a) | pixels(b)
    iou = len(both) / len(either) if either else 0.0
    return iou, iou - (len(around - either) / len(around) if around else 0.0)


@settings(deadline=None)
@given(box, box)
def test_overlaps_are_what_counting_pixels_gives(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    first, second = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    iou, giou = counted(a, b)  # type: ignore[arg-type]
    assert_close(iou_matrix(first, second), torch.tensor([[iou]]))
    assert_close(generalised_iou(first, second), torch.tensor([giou]))


def test_every_pair_has_its_place_in_the_matrix() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(n, 4, generator=random).cumsum(1) * 10 for n in (3, 5))
    matrix = iou_matrix(first, second)
    assert matrix.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            assert_close(matrix[i, j], iou_matrix(first[i : i + 1], second[j : j + 1])[0, 0])
    assert iou_matrix(first[:0], second).shape == (0, 5)


def test_boxes_without_area_or_turned_inside_out_have_finite_gradients() -> None:
    degenerate = [[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 9.0, 5.0], [9.0, 9.0, 5.0, 5.0], [0.0, 0.0, 1e-12, 1e-12]]
    pairs = [(a, b) for a in [*degenerate, [4.0, 4.0, 8.0, 8.0]] for b in degenerate]
    first = torch.tensor([a for a, _ in pairs], requires_grad=True)
    giou = generalised_iou(first, torch.tensor([b for _, b in pairs]))
    giou.sum().backward()
    assert ((giou >= -1) & (giou <= 1)).all()
    assert first.grad is not None
    assert first.grad.isfinite().all()


def test_a_box_that_ends_before_it_begins_has_no_area() -> None:
    assert areas(torch.tensor([[0.0, 0.0, 2.0, 3.0], [2.0, 0.0, 0.0, 3.0], [2.0, 3.0, 0.0, 0.0]])).tolist() == [6, 0, 0]
