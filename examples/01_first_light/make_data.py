"""Make a small sparse data set and a video, from a seed, with nothing but NumPy, OpenCV and PyAV.

    python make_data.py data/demo

    data/demo/{train,val}/{cross,disk,ring,square}/0000.jpg ...   224x224 pixels, one object each
    data/demo/{train,val}/{cross,disk,ring,square}/boxes.txt      file name, x0, y0, x1, y1 in pixels, tab separated
    data/demo/demo.mp4                                            objects crossing one at a time, H.264
    data/demo/demo.txt                                            what is in each frame: frame, class, x0, y0, x1, y1

An object covers a few per cent of its image and the rest is texture: the case that token selection is made for. Each
class has its shape and its hues. Boxes are half-open: x1 and y1 are one past the last pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Image = npt.NDArray[np.uint8]

IMAGE_SIZE = 224  # pixels, both sides
VIDEO_SIZE = 448  # square like the training images: a classifier's input is stretched, and a stretched disk is none
FRAME_RATE = 25
BOX_SHARE = (0.03, 0.08)  # of the image that an upright object's box covers
MIN_CONTRAST = 60.0  # distance in CIELAB (0 to 100 in lightness) of an object's colour from every texture colour
FRAMES_VISIBLE, FRAMES_EMPTY = 40, 10  # in the video, for each object in turn


class Box(NamedTuple):
    """Pixels, half-open."""

    x0: int
    y0: int
    x1: int
    y1: int


# Signed distances, in units of the object's half extent: negative inside, 0 on the outline. x and y are h x w.
def _cross(x: Floats, y: Floats) -> Floats:
    arm, length = 0.32, 1.0
    a, b = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(a - arm, b - length), np.maximum(a - length, b - arm))


def _disk(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 1.0


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.86  # so that its area is near the disk's


SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "cross": _cross,
    "disk": _disk,
    "ring": _ring,
    "square": _square,
}
# Each class has its colours too, so that a few minutes from random weights suffice; shape alone takes much longer.
HUES = {"cross": 0.0, "disk": 215.0, "ring": 48.0, "square": 130.0}  # degrees
HUE_SPREAD = 20.0  # to either side


def random_colour(
    rng: np.random.Generator,
    light: tuple[float, float],
    saturation: tuple[float, float],
    hue: tuple[float, float] = (0.0, 360.0),
) -> Floats:
    """A BGR colour, 3 float32 in [0, 255]; ``hue`` in degrees, the others in [0, 1]."""
    hsv = np.array([[[rng.uniform(*hue) % 360, rng.uniform(*saturation), rng.uniform(*light)]]], dtype=np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255, dtype=np.float32)


def lab(colour: Floats) -> Floats:
    """A BGR colour (3 values in [0, 255]) in CIELAB, where distance is what an eye calls difference."""
    pixel = (colour / 255).reshape(1, 1, 3).astype(np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_BGR2LAB)[0, 0], dtype=np.float32)


def pixel_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """x and y of every pixel, each height x width float32."""
    return np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))


def clouds(rng: np.random.Generator, height: int, width: int, coarsest: float) -> Floats:
    """Smoothed noise of four octaves, height x width float32 in [0, 1]."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(4):
        cell = coarsest / 2**octave
        grid = rng.random((max(2, round(height / cell) + 2), max(2, round(width / cell) + 2)), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def stripes(rng: np.random.Generator, height: int, width: int, period: float) -> Floats:
    """Wavy stripes in any direction, height x width float32 in [0, 1]."""
    angle = rng.uniform(0, np.pi)
    x, y = pixel_grid(height, width)
    along = x * np.cos(angle) + y * np.sin(angle) + clouds(rng, height, width, 6 * period) * 2 * period
    return np.asarray(0.5 + 0.5 * np.sin(along * (2 * np.pi / period)), dtype=np.float32)


def slope(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A linear gradient in any direction, height x width float32 in [0, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = pixel_grid(height, width)
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.asarray((along - along.min()) / (along.max() - along.min()), dtype=np.float32)


def background(rng: np.random.Generator, height: int, width: int, unit: float) -> tuple[Floats, list[Floats]]:
    """A texture and the colours it is mixed from.

    Args:
        unit: pixels that a texture detail measures at an image of 224 pixels; scale it with the image.

    Returns:
        height x width x 3 float32 BGR in [0, 255], and three BGR colours.
    """
    colours = [random_colour(rng, light=(0.25, 0.85), saturation=(0.1, 0.5)) for _ in range(3)]
    patterns = (
        lambda: clouds(rng, height, width, rng.uniform(30, 90) * unit),
        lambda: stripes(rng, height, width, rng.uniform(9, 26) * unit),
        lambda: slope(rng, height, width),
    )
    first = patterns[rng.integers(3)]()[..., None]
    second = clouds(rng, height, width, rng.uniform(15, 60) * unit)[..., None] * rng.uniform(0.2, 0.6)
    mixed = colours[0] * (1 - first) + colours[1] * first
    mixed = mixed * (1 - second) + colours[2] * second
    grain = rng.normal(0, rng.uniform(2, 7), (height, width, 1)).astype(np.float32)
    return (mixed + grain).astype(np.float32), colours


def object_colour(rng: np.random.Generator, shape: str, around: list[Floats]) -> Floats:
    """A vivid BGR colour of the class that stands out from those around it; the best of a hundred where none does."""
    middle = HUES[shape]
    best, best_distance = np.zeros(3, dtype=np.float32), -1.0
    for _ in range(100):
        colour = random_colour(rng, (0.55, 1.0), (0.6, 1.0), (middle - HUE_SPREAD, middle + HUE_SPREAD))
        distance = min(float(np.linalg.norm(lab(colour) - lab(other))) for other in around)
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance >= MIN_CONTRAST:
            break
    return best


def draw(
    canvas: Floats, shape: str, centre: tuple[float, float], radius: float, angle: float, colour: Floats
) -> Box | None:
    """Draw an object with a soft shadow.

    Args:
        canvas: H x W x 3 float32 BGR in [0, 255], changed in place.
        shape: a key of SHAPES.
        centre: (x, y) in pixels; may lie outside the canvas.
        radius: half extent in pixels.
        angle: in radians.
        colour: BGR in [0, 255].

    Returns:
        The box of the pixels that are at least half covered; None when there is none.
    """
    height, width = canvas.shape[:2]
    x, y = pixel_grid(height, width)
    x, y = (x + 0.5 - centre[0]) / radius, (y + 0.5 - centre[1]) / radius
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))

    def distance(dx: float, dy: float) -> Floats:
        u, v = x - dx, y - dy
        return SHAPES[shape](u * cos + v * sin, v * cos - u * sin)

    shadow = np.clip(0.5 - distance(0.12, 0.16) / 0.36, 0, 1)[..., None] * 0.45
    canvas *= 1 - shadow
    cover = np.clip(0.5 - distance(0, 0) * radius, 0, 1)  # one pixel of transition: an anti-aliased edge
    shaded = colour * np.clip(1.0 - 0.22 * (x + y), 0.7, 1.3)[..., None]  # light from the upper left
    canvas += (shaded - canvas) * cover[..., None]
    rows, columns = np.nonzero(cover >= 0.5)
    if not rows.size:
        return None
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def finished(canvas: Floats) -> Image:
    """Float to 8 bits."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def make_image(rng: np.random.Generator, shape: str) -> tuple[Image, Box]:
    """One training image: IMAGE_SIZE x IMAGE_SIZE x 3 uint8 BGR, and the box of its object."""
    canvas, colours = background(rng, IMAGE_SIZE, IMAGE_SIZE, unit=1.0)
    radius = np.sqrt(rng.uniform(*BOX_SHARE)) * IMAGE_SIZE / 2
    # A turned square reaches 1.22 radii from its centre; the object lies wholly inside.
    low, high = 1.25 * radius, IMAGE_SIZE - 1.25 * radius
    centre = (rng.uniform(low, high), rng.uniform(low, high))
    box = draw(canvas, shape, centre, radius, rng.uniform(0, 2 * np.pi), object_colour(rng, shape, colours))
    if box is None:
        raise RuntimeError(f"a {shape} at {centre} is out of its image")
    return finished(canvas), box


def write_split(folder: Path, images: int, seed: int) -> None:
    """Write ``images`` images, the classes in turn; each is made from a seed of its own, whatever their number.

    Raises:
        OSError: when a file cannot be written.
    """
    lines: dict[str, list[str]] = {shape: [] for shape in SHAPES}
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for old in (folder / shape).glob("[0-9][0-9][0-9][0-9].jpg"):
            old.unlink()
    # The folder's name is part of the seed: val is not train again.
    split = int.from_bytes(folder.name.encode(), "big") % 2**32
    for index in range(images):
        shape = list(SHAPES)[index % len(SHAPES)]
        image, box = make_image(np.random.default_rng([seed, split, index]), shape)
        name = f"{index:04}.jpg"
        if not cv2.imwrite(str(folder / shape / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"{folder / shape / name} cannot be written")
        lines[shape].append("\t".join([name, *map(str, box)]))
    for shape, rows in lines.items():
        (folder / shape / "boxes.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def video_frames(frames: int, seed: int) -> Iterator[tuple[Image, str, Box | None]]:
    """Frames VIDEO_SIZE x VIDEO_SIZE x 3 uint8 BGR with the class and the box of what is in sight, if anything is."""
    rng = np.random.default_rng([seed, 0])
    scale = VIDEO_SIZE / IMAGE_SIZE
    texture, colours = background(rng, VIDEO_SIZE + frames // 2 + 1, VIDEO_SIZE + frames // 2 + 1, unit=scale)
    period = FRAMES_VISIBLE + FRAMES_EMPTY
    order = [shape for _ in range(frames // period + 1) for shape in rng.permutation(list(SHAPES))]
    for frame in range(frames):
        turn, step = divmod(frame, period)
        own = np.random.default_rng([seed, 1, turn])  # every frame of a turn draws the same object
        radius = np.sqrt(own.uniform(*BOX_SHARE)) * VIDEO_SIZE / 2
        colour = object_colour(own, order[turn], colours)
        heading, bend, spin = own.uniform(0, 2 * np.pi), own.uniform(-0.5, 0.5), own.uniform(-1.5, 1.5)
        camera = frame // 2  # the camera glides: a still background would be too easy to look at
        canvas = texture[camera : camera + VIDEO_SIZE, camera : camera + VIDEO_SIZE].copy()
        box = None
        if step < FRAMES_VISIBLE:
            progress = step / (FRAMES_VISIBLE - 1)
            # Across the middle along a chord that bends, from just outside to just outside.
            along, aside = (
                (2 * progress - 1) * (0.66 * VIDEO_SIZE),
                bend * np.cos(np.pi * (progress - 0.5)) * 0.5 * VIDEO_SIZE,
            )
            centre = (
                VIDEO_SIZE / 2 + along * np.cos(heading) - aside * np.sin(heading),
                VIDEO_SIZE / 2 + along * np.sin(heading) + aside * np.cos(heading),
            )
            box = draw(canvas, order[turn], centre, radius, heading + spin * progress * np.pi, colour)
        yield finished(canvas), order[turn] if box else "", box


def encode(path: Path, images: Iterable[Image]) -> None:
    """Write images VIDEO_SIZE x VIDEO_SIZE x 3 uint8 BGR as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "18"})
        stream.width = stream.height = VIDEO_SIZE
        stream.pix_fmt = "yuv420p"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(path: Path, frames: int, seed: int) -> None:
    """Write the video and, beside it, what is in each of its frames (``.txt``)."""
    lines: list[str] = []

    def images() -> Iterator[Image]:
        for index, (image, shape, box) in enumerate(video_frames(frames, seed)):
            if box:
                lines.append("\t".join([str(index), shape, *map(str, box)]) + "\n")
            yield image

    encode(path, images())
    path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=800, help="training images (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation images (default %(default)s)")
    parser.add_argument("--frames", type=int, default=250, help="frames of the video (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default %(default)s)")
    options = parser.parse_args()
    for split, images in (("train", options.train), ("val", options.val)):
        print(f"{options.out / split}: {images} images", flush=True)
        write_split(options.out / split, images, options.seed)
    print(f"{options.out / 'demo.mp4'}: {options.frames} frames", flush=True)
    write_video(options.out / "demo.mp4", options.frames, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
