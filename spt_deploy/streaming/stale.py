"""What a run removes and replaces in its folder: files that an earlier one left there, and never what it reads."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from spt_deploy.errors import UsageError
from spt_deploy.streaming.annotations import ANNOTATED_IMAGES, ANNOTATED_VIDEO
from spt_deploy.streaming.crops import CROPS, is_crop_name, remove_crops
from spt_deploy.streaming.formats import COCO_RESULTS, TABLE
from spt_deploy.streaming.frames import ImageSource, Source
from spt_deploy.streaming.resume import files_named
from spt_deploy.streaming.video import VideoFile

_VIDEO = r"annotated(-\d+)?\.mp4"
_OURS = re.compile(rf"{re.escape(TABLE)}|{re.escape(COCO_RESULTS)}|{_VIDEO}")
_VIDEOS = re.compile(rf"{_VIDEO}|.*\.{re.escape(ANNOTATED_VIDEO)}")


def check_sources(folder: Path, sources: Sequence[Source], images: bool) -> None:
    """Whether a run leaves the files alone that it reads.

    Args:
        folder: of the results.
        sources: to be read.
        images: whether annotated images are written.

    Raises:
        UsageError: when one lies where the run writes a file of that name, or removes that of an earlier run.
    """
    here = os.path.realpath(folder)
    real = cache(os.path.realpath)  # a folder of many images is looked up once
    for source in sources:
        videos = [source.path] if isinstance(source, VideoFile) else []
        for path in source.paths if isinstance(source, ImageSource) else videos:
            parent = Path(real(path.parent))
            if parent.is_relative_to(here) and _is_replaced((*parent.relative_to(here).parts, path.name), images):
                raise UsageError(
                    f"{path} lies where results in {folder} do, which would replace or remove it; choose another --out"
                )


def _is_replaced(parts: tuple[str, ...], images: bool) -> bool:
    """Whether a run may replace or remove what it finds there; the parts of a path below its folder."""
    if len(parts) == 1:
        return bool(_VIDEOS.fullmatch(parts[0]))
    return (images and parts[0] == ANNOTATED_IMAGES) or (parts[0] == CROPS and is_crop_name(parts[-1]))


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
