"""Progress of nested phases never runs backwards nor past its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.engine.monitor import Steps


def test_a_phase_that_ends_early_has_done_all_of_its_steps() -> None:
    steps = Steps()
    steps.start("build", 2)
    steps.start("tactics", 10)
    steps.step("tactics")
    assert (steps.done, steps.total) == (1, 12)
    steps.finish("tactics")
    assert (steps.done, steps.total) == (10, 12)
    steps.finish("build")
    assert (steps.done, steps.total) == (12, 12)


@given(st.lists(st.tuples(st.sampled_from(["start", "step", "finish"]), st.sampled_from("abc"), st.integers(0, 5))))
def test_done_grows_and_stays_within_the_total_whatever_is_reported(
    events: list[tuple[str, str, int]],
) -> None:
    steps, before = Steps(), 0
    for event, phase, count in events:
        if event == "start":
            steps.start(phase, count)
        elif event == "step":
            steps.step(phase)
        else:
            steps.finish(phase)
        assert before <= steps.done <= steps.total
        before = steps.done
