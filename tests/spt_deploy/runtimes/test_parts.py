"""A batch cut into parts: equal ones where they must be, and every image once."""

from __future__ import annotations

import numpy as np
import pytest

from spt_deploy.runtimes.parts import cut, parts_of


@pytest.mark.parametrize(
    ("batch", "cores", "most", "number", "together"),
    [
        (8, 2, None, 2, 2),
        (6, 4, None, 2, 2),  # on two cores each, for three would leave one idle
        (8, 6, None, 2, 2),
        (7, 4, None, 1, 1),
        (1, 4, 1, 1, 1),
        (4, 8, None, 4, 4),
        (8, 1, 4, 2, 1),
        (16, 2, 4, 4, 2),
        (8, 2, 4, 2, 2),
        (8, 1, 3, 4, 1),  # of two images each
        (7, 1, 4, 1, 1),  # parts of one image would be slower
        (7, 1, 2, 7, 1),
    ],
)
def test_parts_are_equal_no_more_at_a_time_than_cores_and_no_larger_than_a_core_computes_fast(
    batch: int, cores: int, most: int | None, number: int, together: int
) -> None:
    assert parts_of(batch, cores, most) == (number, together)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize(("count", "size"), [(8, 4), (7, 4), (3, 4), (5, 1), (1, 1)])
def test_every_image_is_in_one_part_in_its_order(count: int, size: int, fill: bool) -> None:
    feeds = {"images": np.arange(count * 3).reshape(count, 3), "threshold": np.asarray(0.5)}
    parts = list(cut(feeds, count, size, fill))
    assert all(part["threshold"] == 0.5 for part in parts)
    assert all(len(part["images"]) == size for part in (parts if fill else parts[:-1]))
    np.testing.assert_array_equal(np.concatenate([part["images"] for part in parts])[:count], feeds["images"])
    if fill:
        assert (parts[-1]["images"][count - size * (len(parts) - 1) :] == feeds["images"][-1]).all()
    else:
        assert sum(len(part["images"]) for part in parts) == count
