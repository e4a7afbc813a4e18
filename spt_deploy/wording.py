"""Words that every command has in its sentences."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image`` or ``3 images``; ``many`` where that is not ``one`` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
