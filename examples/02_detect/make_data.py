"""Make a small data set of sparse scenes for a detector, in COCO's format, and a video, from a seed.

    python make_data.py data/scenes

    data/scenes/{train,val}/0000.jpg ...                224x224 pixels, up to four objects each
    data/scenes/annotations/instances_{train,val}.json  a box and a polygon for every object
    data/scenes/demo.mp4                                objects crossing, none at times, up to three at once; H.264
    data/scenes/demo.txt                                what is in each frame: frame, class, x0, y0, x1, y1

Crosses, disks, rings and squares as in example 01, whose look this script borrows. None hides a part
of another, and about one scene in ten is empty. A polygon is the outer outline: a ring's hole counts as the ring.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt


def _sibling(path: Path) -> ModuleType:
    """The script of another example as a module; its folder's name is none that ``import`` takes."""
    spec = importlib.util.spec_from_file_location("first_light_look", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded; keep the examples side by side")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


look = _sibling(Path(__file__).resolve().parents[1] / "01_first_light" / "make_data.py")

CLASSES = tuple(sorted(look.SHAPES))
IMAGE_SIZE = 224  # pixels, both sides
OBJECTS = (0.1, 0.25, 0.3, 0.2, 0.15)  # share of scenes with 0, 1, 2, 3 and 4 objects
BOX_SHARE = (0.008, 0.06)  # of a scene that one upright object's box covers
GAP = 0.015  # of a scene's side, at least, between two objects
VIDEO_SIZE = look.VIDEO_SIZE
LANES = 3  # of the video: objects cross side by side, so that none hides another
CROSSING, PAUSE = (50, 110), (10, 70)  # frames that an object of the video takes, and that its lane is empty after it
_ATTEMPTS = 50  # to find a free place before an object is left out


Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half-open


class Object(NamedTuple):
    """One object of a scene.

    Attributes:
        shape: its class.
        box: x0, y0, x1, y1 in pixels, half-open.
        polygon: n x 2, x and y in pixels, the outer outline.
        area: pixels inside the outline.
    """

    shape: str
    box: tuple[int, int, int, int]
    polygon: npt.NDArray[np.float64]
    area: float


def make_scene(rng: np.random.Generator, size: int = IMAGE_SIZE) -> tuple[npt.NDArray[np.uint8], list[Object]]:
    """One scene: size x size x 3 uint8 BGR, and its objects."""
    canvas, colours = look.background(rng, size, size, unit=size / look.IMAGE_SIZE)
    objects: list[Object] = []
    circles: list[tuple[float, float, float]] = []  # around every object: x, y, radius
    for _ in range(rng.choice(len(OBJECTS), p=OBJECTS)):
        radius = np.sqrt(rng.uniform(*BOX_SHARE)) * size / 2
        circle = _free_place(rng, 1.25 * radius, circles, size)  # a turned square reaches 1.22 radii from its centre
        if circle is None:
            continue
        circles.append(circle)
        shape, angle = str(rng.choice(CLASSES)), float(rng.uniform(0, 2 * np.pi))
        box = look.draw(canvas, shape, circle[:2], radius, angle, look.object_colour(rng, shape, colours))
        if box is None:
            raise RuntimeError(f"a {shape} at {circle[:2]} is out of its scene")
        objects.append(Object(shape, tuple(box), *_outline(shape, circle[:2], radius, angle, size)))
    return look.finished(canvas), objects


def _free_place(
    rng: np.random.Generator, radius: float, others: list[tuple[float, float, float]], size: int
) -> tuple[float, float, float] | None:
    """A circle (x, y, radius) in pixels, inside the scene and clear of the others; None where none is found."""
    for _ in range(_ATTEMPTS):
        x, y = rng.uniform(radius, size - radius, 2)
        if all(np.hypot(x - a, y - b) > radius + r + GAP * size for a, b, r in others):
            return float(x), float(y), radius
    return None


def _outline(
    shape: str, centre: tuple[float, float], radius: float, angle: float, size: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Polygon of an object that `look.draw` draws, and the pixels in it."""
    x, y = look.pixel_grid(size, size)
    x, y = (x + 0.5 - centre[0]) / radius, (y + 0.5 - centre[1]) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    inside = (look.SHAPES[shape](x * cos + y * sin, y * cos - x * sin) <= 0).astype(np.uint8)
    # Contours run through the centres of pixels: at four times the size they come within an eighth of a pixel.
    fine = cv2.resize(inside, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = max(contours, key=cv2.contourArea)
    filled = cv2.drawContours(np.zeros_like(fine), [contour], 0, 1, cv2.FILLED)
    return (contour[:, 0].astype(np.float64) + 0.5) / 4, float(filled.sum()) / 16


def write_split(folder: Path, split: str, images: int, seed: int, size: int = IMAGE_SIZE) -> None:
    """Write ``images`` scenes and their annotations; each is made from a seed of its own, whatever their number.

    Raises:
        OSError: when a file cannot be written.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for old in (folder / split).glob("[0-9][0-9][0-9][0-9].jpg"):
        old.unlink()
    document: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
    }
    # The split's name is part of the seed: val is not train again.
    split_seed = int.from_bytes(split.encode(), "big") % 2**32
    for index in range(images):
        image, objects = make_scene(np.random.default_rng([seed, split_seed, index]), size)
        name = f"{index:04}.jpg"
        if not cv2.imwrite(str(folder / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"{folder / split / name} cannot be written")
        document["images"].append({"id": index + 1, "file_name": name, "height": size, "width": size})
        document["annotations"] += [
            {
                "id": len(document["annotations"]) + number,
                "image_id": index + 1,
                "category_id": CLASSES.index(entry.shape) + 1,
                "bbox": [entry.box[0], entry.box[1], entry.box[2] - entry.box[0], entry.box[3] - entry.box[1]],
                "segmentation": [entry.polygon.ravel().tolist()],
                "area": entry.area,
                "iscrowd": 0,
            }
            for number, entry in enumerate(objects, start=1)
        ]
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document), encoding="utf-8")


class _Crossing(NamedTuple):
    """One object's way through the video: along a lane, from just outside to just outside."""

    start: int  # frame
    frames: int
    shape: str
    radius: float
    spin: float  # radians in all
    sway: float  # pixels to either side of the lane's middle
    backwards: bool


def _crossings(rng: np.random.Generator, frames: int) -> list[_Crossing]:
    """Those of one lane."""
    found: list[_Crossing] = []
    start = int(rng.integers(*PAUSE)) - PAUSE[0]
    while start < frames:
        radius = float(np.sqrt(rng.uniform(*BOX_SHARE)) * VIDEO_SIZE / 2)
        sway = max(0.0, VIDEO_SIZE / LANES / 2 - 1.25 * radius)
        length = int(rng.integers(*CROSSING))
        shape, spin = str(rng.choice(CLASSES)), float(rng.uniform(-np.pi, np.pi))
        found.append(_Crossing(start, length, shape, radius, spin, float(rng.uniform(0, sway)), bool(rng.integers(2))))
        start += length + int(rng.integers(*PAUSE))
    return found


def video_frames(frames: int, seed: int) -> Iterator[tuple[npt.NDArray[np.uint8], list[tuple[str, Box]]]]:
    """Frames VIDEO_SIZE x VIDEO_SIZE x 3 uint8 BGR, with the class and box of every object in sight."""
    rng = np.random.default_rng([seed, 2])
    glide = frames // 2 + 1  # the camera glides: a still background would be too easy to look at
    texture, colours = look.background(rng, VIDEO_SIZE + glide, VIDEO_SIZE + glide, unit=VIDEO_SIZE / look.IMAGE_SIZE)
    lanes = [
        [(crossing, look.object_colour(rng, crossing.shape, colours)) for crossing in _crossings(rng, frames)]
        for _ in range(LANES)
    ]
    for frame in range(frames):
        camera = frame // 2
        canvas = texture[camera : camera + VIDEO_SIZE, camera : camera + VIDEO_SIZE].copy()
        objects: list[tuple[str, Box]] = []
        for lane, crossings in enumerate(lanes):
            for crossing, colour in crossings:
                progress = (frame - crossing.start) / crossing.frames
                if not 0 <= progress <= 1:
                    continue
                outside = 1.25 * crossing.radius
                x = -outside + (1 - progress if crossing.backwards else progress) * (VIDEO_SIZE + 2 * outside)
                y = (lane + 0.5) * VIDEO_SIZE / LANES + crossing.sway * np.sin(2 * np.pi * progress)
                angle = crossing.spin * progress
                box = look.draw(canvas, crossing.shape, (x, y), crossing.radius, angle, colour)
                if box is not None:
                    objects.append((crossing.shape, box))
        yield look.finished(canvas), objects


def write_video(path: Path, frames: int, seed: int) -> None:
    """Write the video and, beside it, what is in each of its frames (``.txt``)."""
    lines: list[str] = []

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        for index, (image, objects) in enumerate(video_frames(frames, seed)):
            lines.extend("\t".join([str(index), shape, *map(str, box)]) + "\n" for shape, box in objects)
            yield image

    look.encode(path, images())
    path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=800, help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation scenes (default %(default)s)")
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help="pixels of a side (default %(default)s)")
    parser.add_argument("--frames", type=int, default=250, help="frames of the video (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default %(default)s)")
    options = parser.parse_args()
    for split, images in (("train", options.train), ("val", options.val)):
        print(f"{options.out / split}: {images} scenes", flush=True)
        write_split(options.out, split, images, options.seed, options.size)
    print(f"{options.out / 'demo.mp4'}: {options.frames} frames", flush=True)
    write_video(options.out / "demo.mp4", options.frames, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
