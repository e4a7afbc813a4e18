"""What people read while a command works: lines and progress on stderr, so that stdout holds results only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Between two plain lines: often enough to see that it lives, seldom enough for a log.
PLAIN_INTERVAL_S = 10.0
PIPED_WIDTH = 140  # columns
_WIDE = 80  # columns, from which on there is room for a bar
_ANY_WIDTH = 10_000  # columns: how wide a table would be that nothing holds back


class Reporter(Protocol):
    """How far a job is."""

    def begin(self) -> None:
        """The work begins now: what came before, such as loading a model, is not in its rate."""

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        """Say that ``done`` units are done.

        Args:
            done: units since the start, not since the last call.
            text: free words shown after the numbers, such as ``loss 0.31``; empty keeps what stood there.
            total: all units, where that has become known or has changed.
        """


@cache
def console() -> Console:
    """The one console of the process, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def results() -> Console:
    """A console on stdout for tables; one that is piped into a file is not cut to a terminal that is not there."""
    from rich.console import Console

    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def show(table: Table) -> None:
    """Print a table on stdout; where the terminal is too narrow for its words, each row as lines: nothing is cut."""
    from rich.measure import Measurement
    from rich.padding import Padding

    out = results()
    for column in table.columns:
        column.overflow = "fold"  # where rich shares out the width badly
    if Measurement.get(out, out.options.update(max_width=_ANY_WIDTH), table).minimum <= out.width:
        out.print(table)
        return
    heads = [str(column.header) for column in table.columns]
    out.print(*filter(None, [table.title, heads[0]]), sep="\n", style="dim")
    for first, *rest in zip(*(column.cells for column in table.columns), strict=True):
        out.print(first)
        named = (f"{head} {cell}".strip() for head, cell in zip(heads[1:], rest, strict=True) if cell)
        out.print(Padding(", ".join(named), (0, 0, 0, 4), expand=False))


def status(text: str) -> None:
    """Print one line for people; a progress bar that is running stays below it."""
    # Soft wrap: a path that is broken in two cannot be copied. No markup: "[1]" may be part of a name.
    console().print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int | None = None, unit: str = "images") -> Iterator[Reporter]:
    """Show how far a job is: a bar with rate and time left, or now and then a plain line when stderr is no terminal.

    Args:
        what: the job in a word or two, such as ``epoch 3/12``.
        total: all units; None when nobody knows, as for a camera.
        unit: what is counted, in the plural.
    """
    if not console().is_terminal:
        lines = PlainProgress(what, total, unit)
        yield lines
        lines.close()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    fixed = Column(no_wrap=True)  # the bar gives way to numbers, and on a narrow terminal it makes room for them
    wide = console().width >= _WIDE
    columns = (
        TextColumn("{task.description}", markup=False),
        *([BarColumn()] if wide else []),
        MofNCompleteColumn(table_column=fixed),
        *([TextColumn("{task.fields[rate]}")] if wide else []),
        TimeRemainingColumn(compact=True, table_column=fixed),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console()) as rich:
        yield _Bar(rich, what, total, unit)


class _Bar:
    """A bar of rich."""

    def __init__(self, rich: Progress, what: str, total: int | None, unit: str) -> None:
        self._rich = rich
        self._unit = unit
        self._rate = self._text = ""
        self._task = rich.add_task(what, total=total, rate="", text="")

    def begin(self) -> None:
        """Nothing: rich's speed is that of the last updates."""

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        speed = self._rich.tasks[0].speed
        self._rate = f"{speed:.1f} {self._unit}/s" if speed else self._rate
        self._text = text or self._text
        self._rich.update(self._task, completed=done, total=total, rate=self._rate, text=self._text)


class PlainProgress:
    """Lines for logs and pipes: one when ``PLAIN_INTERVAL_S`` have gone by since the last, and one at the end."""

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        write: Callable[[str], None] = status,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._write, self._clock = write, clock
        self._start = self._last = clock()
        self._done, self._text, self._shown = 0, "", -1

    def begin(self) -> None:
        """Count the time from now on."""
        self._start = self._last = self._clock()

    def update(self, done: int, text: str = "", total: int | None = None) -> None:
        self._done = done
        self._text = text or self._text
        self._total = self._total if total is None else total
        if self._clock() - self._last >= PLAIN_INTERVAL_S:
            self._line()

    def close(self) -> None:
        """Print where it ended, unless that line is there already."""
        if self._done != self._shown:
            self._line()

    def _line(self) -> None:
        self._last = self._clock()
        self._shown = self._done
        rate = self._done / max(self._last - self._start, 1e-9)
        parts = [f"{self._what}: {self._done}{f'/{self._total}' if self._total else ''} {self._unit}"]
        if self._done:
            parts.append(f"{rate:.1f} {self._unit}/s")
        if self._done and self._total and self._total > self._done:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        if self._text:
            parts.append(self._text)
        self._write(", ".join(parts))


class Sparkline:
    """The last shares of something as a line of bars of eight heights, from 0 to 1; empty where nobody could read it.

    Args:
        length: how many of them.
        drawn: whether there is anything to see; None finds out whether stderr is a terminal with such characters.
    """

    BARS = "▁▂▃▄▅▆▇█"

    def __init__(self, length: int = 20, drawn: bool | None = None) -> None:
        self._shares: deque[float] = deque(maxlen=length)
        self._drawn = console().is_terminal and not console().options.ascii_only if drawn is None else drawn

    def add(self, share: float) -> None:
        """The next, in [0, 1]."""
        self._shares.append(share)

    def __str__(self) -> str:
        if not self._drawn:
            return ""
        highest = len(self.BARS) - 1
        return "".join(self.BARS[min(highest, max(0, int(share * len(self.BARS))))] for share in self._shares)


def _duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


__all__ = [
    "PLAIN_INTERVAL_S",
    "PlainProgress",
    "Reporter",
    "Sparkline",
    "console",
    "progress",
    "results",
    "show",
    "status",
]
