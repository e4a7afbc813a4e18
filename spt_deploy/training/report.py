"""How a run tells people what it does, without knowing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """How far an epoch is."""

    def update(self, done: int, text: str = "") -> None:
        """Say that ``done`` images of the epoch are done; ``text`` is a few words beside the bar."""


class _Silence:
    def update(self, done: int, text: str = "") -> None:
        pass


@contextmanager
def _silence(what: str, total: int) -> Iterator[Progress]:
    yield _Silence()


@dataclass(frozen=True)
class Reports:
    """Where a run's words go; by default nowhere.

    Attributes:
        say: takes one line.
        progress: takes what is done (``epoch 3/12``) and how many images that is, and gives a `Progress` for the block.
    """

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int], AbstractContextManager[Progress]] = _silence
