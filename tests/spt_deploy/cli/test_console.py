"""Lines and progress."""

from __future__ import annotations

import pytest

from spt_deploy.cli.console import PLAIN_INTERVAL_S, PlainProgress, Sparkline, progress, status


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_plain_progress_prints_no_more_than_one_line_an_interval(clock: Clock) -> None:
    lines: list[str] = []
    bar = PlainProgress("epoch 1/2", 100, "images", write=lines.append, clock=clock)
    for done in range(1, 51):
        clock.now += PLAIN_INTERVAL_S / 20
        bar.update(done)
    assert len(lines) == 2


def test_a_plain_line_says_how_far_how_fast_and_how_long(clock: Clock) -> None:
    lines: list[str] = []
    bar = PlainProgress("epoch 1/2", 200, "images", write=lines.append, clock=clock)
    clock.now = 10.0
    bar.update(50, "loss 0.31")
    assert lines == ["epoch 1/2: 50/200 images, 5.0 images/s, 0:30 left, loss 0.31"]


def test_the_last_plain_line_is_printed_once(clock: Clock) -> None:
    lines: list[str] = []
    bar = PlainProgress("reading", None, "frames", write=lines.append, clock=clock)
    clock.now = 20.0
    bar.update(40)
    bar.close()
    assert lines == ["reading: 40 frames, 2.0 frames/s"]


def test_a_total_that_becomes_known_is_shown(clock: Clock) -> None:
    lines: list[str] = []
    bar = PlainProgress("reading", None, "frames", write=lines.append, clock=clock)
    clock.now = 5.0
    bar.update(5, total=5)
    bar.close()
    assert lines == ["reading: 5/5 frames, 1.0 frames/s"]


def test_progress_and_status_go_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    name = "runs/a-[1]-folder/" + "x" * 120 + ".onnx"  # neither markup nor wrapped
    with progress("work", 2) as bar:
        bar.update(2, "done")
    status(f"wrote {name}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "work: 2/2 images" in captured.err
    assert f"wrote {name}\n" in captured.err


def test_a_sparkline_shows_the_last_shares_from_nothing_to_all() -> None:
    line = Sparkline(length=4, drawn=True)
    assert str(line) == ""
    for share in (1.0, 0.0, 0.13, 0.5, 1.0):
        line.add(share)
    assert str(line) == "▁▂▅█"


def test_a_sparkline_is_empty_where_nobody_could_read_it() -> None:
    line = Sparkline()  # tests have no terminal
    line.add(0.5)
    assert str(line) == ""
