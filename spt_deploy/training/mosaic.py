"""Four training images in one, meeting at a point: more objects and more sizes a step.

Source: YOLOv4, arXiv 2004.10934, section 3.3; the arrangement here keeps every image at its aspect ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spt_deploy.datasets.scene import Scene, resize_mask
from spt_deploy.training.augment import OUTSIDE_BGR, Crop, crop

IMAGES = 4
CENTRE = (0.3, 0.7)  # where the four meet, as shares of the sides
SIZE = (0.5, 1.0)  # of each image, as shares of the size at which it would fill the input alone


def mosaic(scenes: Sequence[Scene], size: tuple[int, int], random: np.random.Generator) -> Scene:
    """Put four scenes round a point.

    Args:
        scenes: upper left, upper right, lower left, lower right.
        size: (height, width) of the result, that of the model's input.
        random: where chance comes from.

    Returns:
        One scene; what of an image does not fit into its quarter is cut away with its objects.
    """
    middle = [round(side * share) for side, share in zip(size, random.uniform(*CENTRE, 2), strict=True)]
    parts = []
    for place, scene in enumerate(scenes):
        is_lower, is_right = divmod(place, 2)
        height = size[0] - middle[0] if is_lower else middle[0]
        width = size[1] - middle[1] if is_right else middle[1]
        fill = min(size[0] / scene.size[0], size[1] / scene.size[1])
        scene = resize(scene, fill * random.uniform(*SIZE))
        # The corner that meets the others is kept.
        top = 0 if is_lower else scene.size[0] - height
        left = 0 if is_right else scene.size[1] - width
        corner = (middle[0] if is_lower else 0, middle[1] if is_right else 0)
        parts.append((corner, crop(scene, Crop(top, left, height, width))))
    return _together(parts, size)


def resize(scene: Scene, scale: float) -> Scene:
    """The scene at another size, its aspect ratio as near as whole pixels allow."""
    import cv2

    height, width = (max(1, round(side * scale)) for side in scene.size)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR  # as preprocessing does
    scales = np.array([width / scene.size[1], height / scene.size[0]] * 2, dtype=np.float32)
    return replace(
        scene,
        image=np.asarray(cv2.resize(scene.image, (width, height), interpolation=method), dtype=np.uint8),
        boxes=scene.boxes * scales,
        mask=None if scene.mask is None else resize_mask(scene.mask, (height, width)),
    )


def _together(parts: Sequence[tuple[tuple[int, int], Scene]], size: tuple[int, int]) -> Scene:
    """Scenes, each with the (row, column) of its corner, as one of ``size``."""
    image = np.empty((*size, 3), dtype=np.uint8)
    image[:] = OUTSIDE_BGR
    mask = np.zeros(size, dtype=np.uint8)
    boxes = []
    for (row, column), scene in parts:
        where = (slice(row, row + scene.size[0]), slice(column, column + scene.size[1]))
        image[where] = scene.image
        if scene.mask is not None:
            mask[where] = scene.mask
        boxes.append(scene.boxes + np.array([column, row] * 2, dtype=np.float32))
    scenes = [scene for _, scene in parts]
    return Scene(
        image=image,
        boxes=np.concatenate(boxes),
        labels=np.concatenate([s.labels for s in scenes]),
        crowd=np.concatenate([s.crowd for s in scenes]),
        drawn=np.concatenate([s.drawn for s in scenes]),
        mask=mask if any(s.mask is not None for s in scenes) else None,
        known=all(s.known for s in scenes),
    )
