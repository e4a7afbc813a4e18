"""Lines and progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from spt_deploy.cli import console
from spt_deploy.cli.console import PLAIN_INTERVAL_S, PlainProgress, Sparkline, progress, show, status


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


def test_what_came_before_the_work_began_is_not_in_its_rate(clock: Clock) -> None:
    lines: list[str] = []
    bar = PlainProgress("infer", 40, "frames", write=lines.append, clock=clock)
    clock.now = 90.0  # the model is compiled
    bar.begin()
    clock.now = 100.0
    bar.update(20)
    assert lines == ["infer: 20/40 frames, 2.0 frames/s, 0:10 left"]


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


@pytest.mark.parametrize("width", [70, 80, 120])
def test_no_number_of_a_bar_is_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr(console, "console", lambda: terminal)
    with progress("epoch 1/12", 1200) as bar:
        bar.update(1200, "loss 1.957, top1 25.0 %, kept 100 %")
    last = screen.getvalue().splitlines()[-2]  # the cursor comes back after it
    assert "1200/1200" in last
    assert "loss 1.957, top1 25.0 %, kept 100 %" in last
    assert ("━" in last) == (width >= 80)


@pytest.mark.parametrize("width", [20, 30, 45, 80])
def test_a_table_is_whole_on_a_terminal_of_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "results", lambda: Console(highlight=False, width=width))
    table = Table("batch 1", "median ms", "speed-up (quartiles)", "")
    table.add_row("model.onnx (onnxruntime cpu fp32)", "1234.5", "1.00 (0.95-1.06)", "[green]ok[/]")
    table.add_row("model.pt (torch cpu fp32)", "2345.6", "1.00 (0.96-1.04)", "")
    show(table)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert all(word in shown for word in ("model.onnx", "1234.5", "(0.95-1.06)", "ok", "model.pt", "2345.6"))
    assert ("│" in shown) == (width >= 45)


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
