"""Image files: what is taken for one, and that what cannot be decoded whole is refused."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from spt_deploy.errors import SourceError
from spt_deploy.images import IMAGE_SUFFIXES, find_images, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def encoded(suffix: str, image: npt.NDArray[Any] = NOISE) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_kind_is_read_as_bgr(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix.upper()}"
    path.write_bytes(encoded(suffix, NOISE[:, :, 0] if suffix == ".pgm" else NOISE))  # that one is for grey only
    image = read_image(path)
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    if suffix not in (".jpg", ".jpeg", ".webp"):  # lossy
        np.testing.assert_array_equal(image, NOISE[:, :, :1].repeat(3, axis=2) if suffix == ".pgm" else NOISE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_an_error_not_half_a_picture(suffix: str, share: float, tmp_path: Path) -> None:
    whole = encoded(suffix)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match="x"):
        read_image(path)


def test_grey_alpha_and_16_bits_become_8_bit_bgr(tmp_path: Path) -> None:
    images: dict[str, npt.NDArray[Any]] = {
        "grey": NOISE[:, :, 0],
        "alpha": np.dstack([NOISE, NOISE[:, :, 0]]),
        "deep": NOISE.astype(np.uint16) * 257,
    }
    for name, image in images.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(encoded(".png", image))
        assert read_image(path).shape == (40, 60, 3)
        assert read_image(path).dtype == np.uint8


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    jpeg = encoded(".jpg")
    # TIFF header, one entry: tag 0x0112 (orientation), SHORT, count 1, value 6 (turn by 90 degrees clockwise).
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    body = b"Exif\0\0" + tiff
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:])
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(jpeg)
    np.testing.assert_array_equal(read_image(path), np.rot90(read_image(plain), -1))


def test_a_folder_gives_its_images_at_any_depth_sorted_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/b/y.webp", ".c.png", "._b.png", ".git/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a/b/y.webp", "a/z.JPG", "b.png"]


def test_a_folder_without_images_is_an_error_that_lists_the_endings(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"has no images; expected files ending in .bmp, .jpeg, .jpg"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "is empty; expected an image"), (b"hello", "is no image that can be decoded")]
)
def test_what_is_no_image_is_said_to_be_none(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=sentence):
        read_image(path)
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("image", [NOISE / np.float32(255), NOISE[:, :, 0] / np.float32(255)], ids=["colour", "grey"])
def test_a_float_map_is_refused_for_it_would_come_out_black(image: npt.NDArray[Any], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(".pfm", image))
    with pytest.raises(SourceError, match=r"is a float map \(PFM\).*convert it to PNG"):
        read_image(path)


def test_a_pipe_under_the_name_of_an_image_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(SourceError, match=r"x.png is no regular file"):
        read_image(tmp_path / "x.png")


def test_a_file_larger_than_memory_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    try:
        with pytest.raises(SourceError, match=r"x.png is larger than the memory that is free"):
            read_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_folder_that_may_not_be_read_is_said_to_be_that_and_not_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", locked)  # root may read anything
    with pytest.raises(SourceError, match=f"folder {tmp_path} cannot be read: Permission denied"):
        find_images(tmp_path)


def test_a_folder_below_that_may_not_be_read_is_refused_unless_somebody_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    real = os.scandir

    def locked(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)  # root may read anything
    with pytest.raises(SourceError, match=f"folder {tmp_path}/b cannot be read: Permission denied"):
        find_images(tmp_path)
    noted: list[OSError] = []
    assert find_images(tmp_path, noted) == [tmp_path / "a/x.png"]
    assert [error.filename for error in noted] == [str(tmp_path / "b")]
