"""Image files: which they are, and how one is decoded. Everything that reads an image reads it here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spt_deploy.errors import InputError, SourceError

# What OpenCV's wheels decode everywhere. A GIF is not among them: its frames have times, it is read as a video.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_BROKEN = 0.05  # share of the images, or of their annotations, that may be broken, where nobody says otherwise
_ORIENTATION = 0x0112  # EXIF's tag
_LYING = (5, 6, 7, 8)  # its values of which height and width change places
_FLOAT_MAPS = (b"PF", b"Pf")  # OpenCV casts their values, mostly of 0 to 1, to whole numbers: black, and grey as H x W


def is_image_name(path: Path) -> bool:
    """Whether the name ends like an image's; hidden files (``._photo.jpg`` of macOS) are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def find_images(
    folder: Path, locked: list[OSError] | None = None, is_left_out: Callable[[Path], bool] | None = None
) -> list[Path]:
    """The images in ``folder`` and the folders below it, sorted by path; hidden files and folders are passed over.

    Args:
        folder: to look in.
        locked: why a folder below may not be read is added here, and the others are searched; None refuses it.
        is_left_out: of a folder below, whether to pass over it too.

    Raises:
        SourceError: when there is none, or none that may be read.
    """
    found: list[Path] = []
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if is_left_out:
            folders[:] = [name for name in folders if not is_left_out(Path(parent, name))]
        found += [path for path in (Path(parent, name) for name in names) if is_image_name(path)]
    if errors and (locked is None or not found):
        raise SourceError(f"folder {errors[0].filename} cannot be read: {errors[0].strerror}") from errors[0]
    if not found:
        raise SourceError(
            f"folder {folder} has no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, "
            f"in it or in the folders below"
        )
    if locked is not None:
        locked += errors
    return sorted(found)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one image file.

    Returns:
        H x W x 3 uint8 in BGR order, upright (EXIF orientation obeyed); grey becomes BGR, alpha is left out (libtiff
        multiplies the colours of a TIFF by it), 16 bits become 8.

    Raises:
        SourceError: when the file cannot be read or is no whole image.
    """
    import cv2

    try:
        if path.exists() and not path.is_file():  # a pipe without a writer would be waited for without end
            raise SourceError(f"{path} is no regular file; expected an image")
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise SourceError(f"{path} is larger than the memory that is free; expected an image") from error
    if data[:2].tobytes() in _FLOAT_MAPS:
        raise SourceError(f"{path} is a float map (PFM), whose values have no fixed white; convert it to PNG")
    if not data.size:
        raise SourceError(f"{path} is empty; expected an image")
    try:
        # From memory, for OpenCV returns the upper half of a truncated JPEG that it reads from a file.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # a header that claims more pixels than OpenCV allows
        raise SourceError(f"{path} cannot be decoded as an image: {error.err}") from error
    if image is None:
        raise SourceError(f"{path} is no image that can be decoded; it is damaged, truncated or of another kind")
    return np.asarray(image, dtype=np.uint8)


def check_unreadable(unreadable: int, images: int, reason: str, allowed: float = MAX_BROKEN) -> None:
    """Whether the others do where some of the images cannot be read.

    Args:
        unreadable: how many.
        images: all of them.
        reason: a sentence about the last one.
        allowed: share that may be unreadable; rounded up, for a small set may lack one too.

    Raises:
        InputError: when they are more than that.
    """
    if unreadable > math.ceil(allowed * images):
        raise InputError(
            f"{unreadable} of {images} images cannot be read, more than the {allowed:.0%} that may be left out; "
            f"the last one: {reason}"
        )


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as ``read_image`` decodes it, from the file's header where Pillow is installed.

    Raises:
        SourceError: see ``read_image``; a file that is damaged further on may have a size.
    """
    try:
        from PIL import Image

        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in _LYING
    except Exception:  # no Pillow, no image, or one whose header is too odd for it: who decodes says what it is
        height, width = read_image(path).shape[:2]
        return height, width
    return (width, height) if turned else (height, width)
