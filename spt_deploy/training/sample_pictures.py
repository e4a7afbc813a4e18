"""Pictures of a run: validation images with what the model says of them, and what it kept.

Drawing, preprocessing and thresholds are those of ``spt-deploy infer``: what is seen here is what is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from spt_deploy.atomic import atomic_path
from spt_deploy.datasets.dataset import Record
from spt_deploy.errors import SourceError
from spt_deploy.facts import ModelFacts
from spt_deploy.images import read_image
from spt_deploy.model.network import SptModel
from spt_deploy.postprocess import Postprocessing
from spt_deploy.streaming.frames import Image
from spt_deploy.streaming.overlay import Overlay

COUNT = 8
SMALLEST_SIDE = 224  # pixels; the report shows that many, and labels on a smaller picture would hide it
_LARGEST_SIDE = 1280  # pixels; a report is looked at, not printed


@torch.no_grad()
def write_samples(
    folder: Path, model: SptModel, facts: ModelFacts, records: Sequence[Record], seed: int, count: int = COUNT
) -> list[tuple[Path, Record]]:
    """Write ``count`` pictures into ``folder``, in place of those that were there.

    Args:
        folder: made if need be.
        model: in evaluation mode, on any device.
        facts: of the model.
        records: of the validation split.
        seed: chooses among them; the same seed chooses the same.
        count: pictures, or all where there are fewer. Images that cannot be read are passed over.

    Returns:
        Path and record of each, in the order of the records.

    Raises:
        OutputError: when a picture cannot be written.
    """
    chosen: list[tuple[int, Image]] = []
    for index in np.random.default_rng(seed).permutation(len(records)).tolist():
        try:
            chosen.append((index, read_image(records[index].path)))
        except SourceError:
            continue
        if len(chosen) == count:
            break
    for old in folder.glob("*.jpg"):
        old.unlink()
    device = next(model.parameters()).device
    written = []
    for number, (index, image) in enumerate(sorted(chosen, key=lambda c: c[0]), start=1):
        batch = torch.from_numpy(facts.preprocessing.apply(image))[None].to(device)
        arrays = {name: tensor.cpu().numpy() for name, tensor in model(batch).named().items()}
        canvas = _shown(image)
        # Boxes come back in pixels of the canvas: what the model saw is the image, of whatever size it is shown.
        prediction = Postprocessing().apply(arrays, facts, [(canvas.shape[0], canvas.shape[1])])[0]
        path = folder / f"{number}-{_plain(records[index].path.stem)}.jpg"
        _write(path, Overlay().draw(canvas, prediction, facts))
        written.append((path, records[index]))
    return written


def _shown(image: Image) -> Image:
    """The image at a size at which labels can be read."""
    import cv2

    height, width = image.shape[:2]
    scale = max(1.0, SMALLEST_SIDE / min(height, width))
    scale = min(scale, _LARGEST_SIDE / max(height, width))
    if scale == 1.0:
        return image
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _write(path: Path, picture: Image) -> None:
    import cv2

    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _plain(name: str) -> str:
    """A file name that needs no quoting in Markdown."""
    return re.sub(r"[^\w.-]+", "_", name)[:40]
