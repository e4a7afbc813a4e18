"""What an earlier run left in the folder and this one, which replaces it, does not write: its answers are others."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from spt_deploy.streaming.annotations import ANNOTATED_VIDEO
from spt_deploy.streaming.crops import remove_crops
from spt_deploy.streaming.formats import COCO_RESULTS, TABLE
from spt_deploy.streaming.resume import files_named

_OURS = re.compile(rf"{re.escape(TABLE)}|{re.escape(COCO_RESULTS)}|annotated(-\d+)?\.mp4")


def remove_stale(folder: Path, written: Collection[Path], crops: bool) -> None:
    """Remove files that only infer calls so, and videos that the earlier run's summary names; others are not ours.

    Annotated images stay: nothing tells them from pictures that somebody put there.

    Args:
        folder: of the results; its summary is still that of the earlier run.
        written: files of this run.
        crops: whether this run writes crops, and so has removed those of the earlier one.
    """
    named = {path.name for path in files_named(folder) if path.name.endswith(f".{ANNOTATED_VIDEO}")}
    for path in folder.iterdir():
        if path not in written and (_OURS.fullmatch(path.name) or path.name in named):
            with suppress(OSError):
                path.unlink()
    if not crops:
        remove_crops(folder)
