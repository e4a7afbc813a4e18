"""What artefacts are compared on: random batches, edge cases, and the user's own images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import InputError, SourceError, no_folder
from spt_deploy.images import check_unreadable, find_images, read_image
from spt_deploy.preprocess import Preprocessing

BATCHES = (1, 2, 5)  # one; the exporter's example; one that no power of two divides


class Case(NamedTuple):
    """A batch with a name.

    Attributes:
        name: for tables.
        images: B x 3 x H x W float32, normalised.
        force: ``None``, or ``keep`` / ``drop``: every SPA block keeps all tokens, or none.
    """

    name: str
    images: npt.NDArray[np.float32]
    force: str | None = None


def generated_cases(size: tuple[int, int], seed: int = 0) -> list[Case]:
    """Random batches of 1, 2 and 5, flat images, and batches whose selection is forced to all and to nothing.

    Args:
        size: height and width of the input in pixels.
        seed: of the random images.
    """
    random = np.random.default_rng(seed)
    height, width = size
    cases = [Case(f"random x{b}", random.standard_normal((b, 3, height, width), dtype=np.float32)) for b in BATCHES]
    flat = np.stack([np.full((3, height, width), value, dtype=np.float32) for value in (0.0, -2.0, 2.5)])
    cases.append(Case("grey, black, white", flat))
    spot = np.zeros((1, 3, height, width), dtype=np.float32)
    spot[:, :, height // 2 : height // 2 + 8, width // 2 : width // 2 + 8] = 2.5
    cases.append(Case("one bright spot", spot))
    for b in BATCHES:
        cases.append(Case(f"keeps nothing x{b}", cases[BATCHES.index(b)].images, "drop"))
        cases.append(Case(f"keeps everything x{b}", cases[BATCHES.index(b)].images, "keep"))
    return cases


def folder_cases(
    folder: Path,
    preprocessing: Preprocessing,
    limit: int,
    batch: int,
    status: Callable[[str], None] = lambda text: None,
) -> Iterator[Case]:
    """Images of a folder and its subfolders through the real preprocessing, batch by batch.

    Args:
        folder: searched for images by suffix, in sorted order.
        preprocessing: of the model.
        limit: at most this many images, evenly spread over the folder.
        batch: images a case; the last case may have fewer.
        status: hears of each image that cannot be read and is left out.

    Raises:
        InputError: when there is no such folder, no image in it, or more cannot be read than a run would train without
            (`images.MAX_BROKEN`).
    """
    yield from image_cases(images_in(folder), preprocessing, limit, batch, status)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and its subfolders, sorted.

    Raises:
        InputError: when there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{no_folder(folder)}; give a folder of images with --data")
    return find_images(folder)


def image_cases(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    limit: int,
    batch: int,
    status: Callable[[str], None] = lambda text: None,
) -> Iterator[Case]:
    """These images, as ``folder_cases`` gives those of a folder.

    Raises:
        InputError: when more cannot be read than a run would train without (`images.MAX_BROKEN`).
    """
    if len(files) > limit:
        files = [files[i * len(files) // limit] for i in range(limit)]
    images, done = _readable(files, status), 0
    while part := [preprocessing.apply(image) for image in islice(images, batch)]:
        yield Case(f"images {done + 1}-{done + len(part)}", np.stack(part))
        done += len(part)


def _readable(files: Sequence[Path], status: Callable[[str], None]) -> Iterator[npt.NDArray[np.uint8]]:
    """Those of the images that can be read, as decoded."""
    unreadable = 0
    for file in files:
        try:
            image = read_image(file)
        except SourceError as error:
            if len(files) == 1:
                raise
            unreadable += 1
            check_unreadable(unreadable, len(files), str(error))
            status(f"left out: {error}")
            continue
        yield image
