"""Batches in ONNX Runtime: the same answers however they are cut, in no more sessions than they need."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is an extra")

from spt_deploy.runtimes.onnxruntime_batches import _FAST_BYTES, SessionsByBatch
from spt_deploy.runtimes.onnxruntime_runner import open_session
from tests.spt_deploy.runtimes.sums import assert_right, feeds_of, random_images, sums_model

SMALL, LARGE = 1, 1 << 30  # bytes of an image: any number are fast together, and only one at a time is


class Sums:
    """A real model, the sessions that it was opened in, and what they ran."""

    def __init__(self, image_bytes: int | None = SMALL, lanes: int = 1, cores: int = 1) -> None:
        self._bytes = sums_model().SerializeToString()
        self.threads: list[int | None] = []  # of the runs of each session
        self.sizes: list[int] = []  # of parts
        self.model = SessionsByBatch(self._make, image_bytes, lanes, cores)

    def _make(self, threads: int | None) -> Any:
        self.threads.append(threads)
        return _Counted(open_session(self._bytes, "cpu", threads), self.sizes)

    def __call__(self, batch: int, seed: int = 0) -> None:
        images = random_images(batch, seed)
        assert_right(self.model.run(feeds_of(images)), images)


class _Counted:
    """A session that writes down how many images each of its runs had."""

    def __init__(self, session: Any, sizes: list[int]) -> None:
        self._session, self._sizes = session, sizes
        self.get_outputs = session.get_outputs

    def run(self, names: None, feeds: dict[str, npt.NDArray[Any]]) -> Any:
        self._sizes.append(len(feeds["images"]))
        return self._session.run(names, feeds)


@pytest.mark.parametrize(
    ("batch", "cores", "image_bytes", "threads", "sizes"),
    [
        (8, 2, SMALL, 1, [4, 4]),
        (6, 4, SMALL, 3, [3, 3]),  # one thread calls for each share, and two serve both
        (6, 2, _FAST_BYTES // 2, 1, [1, 1, 2, 2]),
        (5, 1, _FAST_BYTES // 4, None, [2, 3]),
        (4, 8, SMALL, 5, [1, 1, 1, 1]),
        (7, 4, SMALL, None, [7]),
        (4, 2, LARGE, 1, [1, 1, 1, 1]),
        (3, 2, LARGE, None, [1, 1, 1]),
        (8, 2, None, None, [8]),
        (1, 4, LARGE, None, [1]),
    ],
)
def test_a_batch_that_is_expected_is_cut_for_the_cores_and_their_caches(
    batch: int, cores: int, image_bytes: int | None, threads: int | None, sizes: list[int]
) -> None:
    sums = Sums(image_bytes, cores=cores)
    assert sums.model.expect(batch) == ["sum"]
    sums(batch)
    assert (sums.threads, sorted(sums.sizes)) == ([threads], sizes)
    sums(1)
    assert sums.threads == [threads]  # once is not worth another session
    for number in range(batch, 0, -1):
        sums(number, number)


def test_a_larger_batch_than_was_expected_gets_all_cores() -> None:
    sums = Sums(cores=2)
    sums.model.expect(4)
    sums(9)
    assert (sums.threads, sums.sizes) == ([1, None], [9])
    sums.sizes.clear()
    sums(1)  # and so does one image, where that session is there
    sums(4)
    assert (sums.threads, sums.sizes) == ([1, None], [1, 2, 2])


def test_what_is_expected_may_change() -> None:
    sums = Sums(cores=6)
    for batch in (1, 6, 2, None, 2):
        sums.model.expect(batch)
        sums(batch or 3, seed=batch or 3)
    assert sums.threads == [None, 1, 5, 5]  # the one for all cores is kept, and one other
    sums.model.close_pool()


@pytest.mark.parametrize("image_bytes", [SMALL, LARGE])
def test_lanes_compute_one_part_after_the_other(image_bytes: int) -> None:
    sums = Sums(image_bytes, lanes=2, cores=6)
    sums.model.expect(4)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: sums(4, seed), range(20)))
    assert sums.threads == [5]  # four besides the two lanes
    assert sums.sizes == [4] * 20 if image_bytes == SMALL else [1] * 80


def test_a_part_that_fails_is_an_error_and_the_next_batch_is_right() -> None:
    sums = Sums(cores=4)
    sums.model.expect(8)
    with pytest.raises(Exception, match="images"):
        sums.model.run(feeds_of(random_images(8)[..., :7]))
    for seed in range(5):
        sums(8, seed)


def test_batches_that_are_often_too_small_to_share_get_all_cores() -> None:
    sums = Sums(cores=4)
    sums.model.expect(4)
    for seed in range(3):
        sums(1, seed)
    assert sums.threads == [1, None]
