"""Which frames are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.errors import UsageError
from spt_deploy.streaming.frames import Sampling, expected_frames
from spt_deploy.streaming.live import Camera
from spt_deploy.streaming.sources import open_sources


@given(st.integers(0, 40), st.integers(0, 20), st.integers(1, 7), st.none() | st.integers(1, 9))
def test_sampling_is_a_slice_and_counts_what_it_takes(
    total: int, start: int, stride: int, max_frames: int | None
) -> None:
    sampling = Sampling(start, stride, max_frames)
    expected = list(range(total))[start::stride][:max_frames]
    assert [number for number in range(total) if sampling.takes(number)] == expected
    assert sampling.count(total) == len(expected)


@given(st.integers(0, 20), st.integers(1, 7), st.none() | st.integers(1, 9), st.integers(0, 80))
def test_past_means_that_nothing_later_is_taken(start: int, stride: int, max_frames: int | None, number: int) -> None:
    sampling = Sampling(start, stride, max_frames)
    assert sampling.is_past(number) == (not any(sampling.takes(later) for later in range(number, number + 200)))


@pytest.mark.parametrize(("name", "value"), [("start", -1), ("stride", 0), ("stride", -3), ("max_frames", 0)])
def test_a_number_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; expected"):
        Sampling(**{name: value})


def test_the_frames_of_several_sources_are_counted_each_by_itself_unless_one_does_not_say(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").touch()
    images = open_sources([tmp_path / "a", tmp_path / "b"])
    assert expected_frames(images, Sampling()) == 10
    assert expected_frames(images, Sampling(start=1, stride=2)) == 4
    assert expected_frames([*images, Camera(0)], Sampling()) is None
