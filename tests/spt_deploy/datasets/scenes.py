"""Scenes of drawn things whose colours say where each class is."""

from __future__ import annotations

import numpy as np

from spt_deploy.datasets.objects import Objects
from spt_deploy.datasets.outlines import Polygons
from spt_deploy.datasets.scene import Scene
from tests.spt_deploy.datasets.data_formats import HEIGHT, WIDTH, Thing

HUES = 255 * np.eye(3, dtype=np.uint8)  # one channel a class, BGR


def drawn_scene(things: list[tuple[int, int, int, int, bool]], outlines: bool) -> Scene:
    """Grey, with a rectangle or an L for each x, y, half width, half height, whether an L; later ones hide earlier."""
    image = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
    shapes, boxes, labels = [], [], []
    for index, (x, y, half_width, half_height, is_l) in enumerate(things):
        thing = Thing("car", (x, y, min(WIDTH, x + 2 * half_width), min(HEIGHT, y + 2 * half_height)), is_l=is_l)
        image[thing.mask() > 0] = HUES[index % 3]
        boxes.append(thing.box)
        labels.append(index % 3)
        shapes.append(Polygons((np.array(thing.polygon(), dtype=np.float32).reshape(-1, 2),)))
    plain = Objects.from_boxes(boxes, labels)
    objects = Objects(plain.boxes, plain.labels, plain.crowd, plain.areas, tuple(shapes) if outlines else None)
    return Scene.of(image, objects)
