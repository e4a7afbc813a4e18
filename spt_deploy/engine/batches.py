"""How many images an engine takes at once, and how a batch of any size is made to fit."""

from __future__ import annotations

from dataclasses import dataclass

from spt_deploy.errors import UsageError

LARGEST = 4096  # images: beyond it is a slip of the keyboard


@dataclass(frozen=True)
class BatchRange:
    """From the smallest to the largest batch of an engine, and the one it is tuned for.

    Raises:
        UsageError: when the three are not in order, or out of range.
    """

    smallest: int
    usual: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.usual <= self.largest <= LARGEST:
            raise UsageError(
                f"batch is {self}; expected a number, or MIN:OPT:MAX in ascending order, from 1 to {LARGEST}"
            )

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """``8`` for exactly 8, ``1:8:16`` for anything from 1 to 16, tuned for 8.

        Raises:
            UsageError: when the text is neither.
        """
        parts = [part.strip() for part in text.split(":")]
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise UsageError(f"batch is {text!r}; write 8, or MIN:OPT:MAX such as 1:8:16")
        sizes = [int(part) for part in parts]
        return cls(sizes[0], sizes[len(sizes) // 2], sizes[-1])

    def __str__(self) -> str:
        return str(self.usual) if self.is_fixed else f"{self.smallest}:{self.usual}:{self.largest}"

    @property
    def is_fixed(self) -> bool:
        """Whether the engine takes one size only."""
        return self.smallest == self.largest

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are run: smallest, usual and largest, and the powers of two between.

        Each that occurs costs a CUDA graph and its memory, so that not every size can have its own; at most half of a
        padded batch is padding.
        """
        powers = {1 << exponent for exponent in range(LARGEST.bit_length())}
        between = {power for power in powers if self.smallest < power < self.largest}
        return tuple(sorted(between | {self.smallest, self.usual, self.largest}))

    def padded(self, images: int) -> int:
        """The size that a batch of ``images`` is padded to, ``images`` being no more than the largest."""
        return next(size for size in self.sizes if size >= images)
