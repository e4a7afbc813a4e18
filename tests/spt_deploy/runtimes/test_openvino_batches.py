"""A model compiled for the sizes of batch that come: the same answers, and no more compiling than it is worth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("openvino", reason="OpenVINO is an extra")

from spt_deploy.runtimes import openvino_batches
from spt_deploy.runtimes.openvino_batches import MOST_SIZES, ByBatch
from spt_deploy.runtimes.openvino_runner import compile_model, options_for, with_requests
from spt_deploy.runtimes.parts import Parts, parts_of
from tests.spt_deploy.runtimes.sums import assert_right, feeds_of, sums_model
from tests.spt_deploy.runtimes.sums import random_images as images


class Sums:
    """A real model in OpenVINO, and the sizes that it was compiled for."""

    def __init__(self, lanes: int = 1, cores: int = 1, most: int | None = None, whole: bool = False) -> None:
        self._proto = sums_model()
        self.compiled_for: list[int | None] = []
        self.together = 0  # requests of the one that was compiled last
        self.model = ByBatch(self._compiled, lanes, cores=cores, most=most, whole=whole)

    def _compiled(self, batch: int | None, together: int) -> Any:
        self.compiled_for.append(batch)
        self.together = together
        return compile_model(self._proto, "sums", with_requests(options_for(), together), batch)

    def __call__(self, images: npt.NDArray[np.float32]) -> None:
        assert_right(self.model.run(feeds_of(images)), images)


@pytest.fixture
def every_step_takes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(openvino_batches.time, "perf_counter", lambda: float(next(clock)))


def test_a_smaller_batch_is_filled_up_until_that_has_cost_as_much_as_compiling(every_step_takes_a_second: None) -> None:
    sums = Sums()
    sums.model.expect(4)
    sums(images(4))
    sums(images(1))  # three quarters of a second wasted
    assert sums.compiled_for == [4]
    sums(images(3))  # and a quarter
    assert sums.compiled_for == [4, None]


def test_a_larger_batch_waits_for_one_that_takes_any(every_step_takes_a_second: None) -> None:
    sums = Sums()
    sums.model.expect(1)
    sums(images(5))
    assert sums.compiled_for == [1, None]


def test_whatever_sizes_come_it_is_compiled_once_for_all_that_nobody_expected(every_step_takes_a_second: None) -> None:
    sums = Sums()
    sums.model.expect(8)
    for number in range(50):
        sums(images(1 + number * 3 % 8, number))
    assert sums.compiled_for == [8, None]


def test_where_sizes_vary_nothing_is_filled_up() -> None:
    sums = Sums()
    assert sums.model.expect(None) == ["sum"]
    for batch in (3, 1, 5):
        sums(images(batch))
    assert sums.compiled_for == [None]


def test_the_sizes_that_were_of_use_last_are_kept() -> None:
    sums = Sums()
    sizes = list(range(1, MOST_SIZES + 2))
    for size in sizes:
        sums.model.expect(size)
        sums(images(sizes[0]))
    assert sums.compiled_for == sizes
    assert list(sums.model.sizes) == [sizes[0], *sizes[-MOST_SIZES + 1 :]]


def test_a_size_that_is_expected_is_compiled_for_before_it_comes() -> None:
    sums = Sums()
    assert sums.model.expect(6) == sums.model.expect(6) == ["sum"]
    sums(images(6))
    assert sums.compiled_for == [6]


def test_batches_of_all_sizes_at_the_same_time_get_their_own_answers() -> None:
    sums = Sums(lanes=3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: sums(images(1 + seed % 7, seed)), range(60)))
    assert sums.compiled_for == [None] * len(sums.compiled_for)
    assert len(sums.compiled_for) <= 3  # one for each lane that was needed


def test_lanes_that_nobody_needs_are_not_compiled() -> None:
    sums = Sums(lanes=3)
    sums.model.expect(2)
    for seed in range(9):
        sums(images(2, seed))
    assert sums.compiled_for == [2]


@pytest.mark.parametrize(("batch", "cores", "most"), [(8, 2, None), (8, 1, 2), (12, 2, 3), (7, 1, 2), (None, 4, 1)])
def test_in_parts_every_image_gets_its_own_answer(batch: int | None, cores: int, most: int | None) -> None:
    sums = Sums(cores=cores, most=most)
    sums.model.expect(batch)
    parts = Parts() if batch is None else parts_of(batch, cores, most)
    assert (sums.compiled_for, sums.together) == ([batch and batch // parts.number], parts.together)
    for number in range(batch or 5, 0, -1):
        sums(images(number, number))


def test_lanes_compute_one_part_at_a_time_each() -> None:
    sums = Sums(lanes=2, cores=8, most=2)
    sums.model.expect(8)
    assert (sums.compiled_for, sums.together) == ([2], 1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: sums(images(8, seed)), range(20)))


def test_a_part_that_fails_ends_the_others_first_and_the_next_batch_is_right() -> None:
    sums = Sums(cores=4)
    sums.model.expect(8)
    with pytest.raises(RuntimeError):
        sums.model.run(feeds_of(images(8)[..., :7]))
    for seed in range(9):
        sums(images(8, seed))


def test_what_must_not_be_cut_is_not() -> None:
    sums = Sums(cores=8, most=1, whole=True)
    sums.model.expect(8)
    sums(images(8))
    assert (sums.compiled_for, sums.together) == ([8], 1)
