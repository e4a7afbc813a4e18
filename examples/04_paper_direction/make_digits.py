"""Two sparse data sets from scikit-learn's 1,797 scanned digits (8 x 8 pixels each), from a seed.

    python make_digits.py data/digits

    data/digits/padded/{train,val}/{0..9}/0000.png     128x128 pixels: the scan in the upper left quarter, rest black
    data/digits/textured/{train,val}/{0..9}/0000.png   128x128 pixels: white ink in any quarter of a textured background
    .../boxes.txt                                      file name, x0, y0, x1, y1 in pixels, tab separated

`padded` is made like the paper's IN-S, by `spt-deploy data pad`; its object is the whole scan, a quarter of the image.
In `textured`, which is harder, the object is the ink's box. Every fifth scan is for validation, in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from spt_deploy.errors import SptError
from spt_deploy.workflows.sparse_data import make_padded

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

SIZE = 128  # pixels of a side: stage 3 has 8 x 8 tokens, stage 4 has 4 x 4, and a quarter of the image is whole tokens
SCAN = SIZE // 2
PAPER, INK = 235.0, 35.0  # of a padded scan, so that it differs from black wherever there is no ink
WHITE, TEXTURE = 245.0, 0.6  # of textured images: the ink, and what the texture's brightness is multiplied by
INK_LEVEL = 0.4  # of the darkest; what is darker counts as ink for the box


def _sibling(path: Path) -> ModuleType:
    """The script of another example as a module; its folder's name is none that ``import`` takes."""
    spec = importlib.util.spec_from_file_location("first_light_look", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded; keep the examples side by side")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


look = _sibling(Path(__file__).resolve().parents[1] / "01_first_light" / "make_data.py")


def enlarged(scan: Floats, side: int) -> Floats:
    """An 8 x 8 scan in [0, 16] as side x side float32 ink in [0, 1]."""
    ink = cv2.resize(scan.astype(np.float32) / 16, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(ink, 0, 1), dtype=np.float32)


def on_paper(scan: Floats) -> Image:
    """SCAN x SCAN uint8 grey: dark ink on light paper."""
    return np.asarray(np.rint(PAPER + (INK - PAPER) * enlarged(scan, SCAN)), dtype=np.uint8)


def on_texture(scan: Floats, rng: np.random.Generator) -> tuple[Image, tuple[int, int, int, int]]:
    """SIZE x SIZE x 3 uint8 BGR with the digit in one of its quarters, and its box: x0, y0, x1, y1, half-open."""
    canvas = look.background(rng, SIZE, SIZE, unit=SIZE / look.IMAGE_SIZE)[0] * TEXTURE
    x, y = (int(v) * SCAN for v in rng.integers(0, 2, 2))
    ink = enlarged(scan, SCAN)
    place = canvas[y : y + SCAN, x : x + SCAN]
    place += (WHITE - place) * ink[..., None]
    rows, columns = np.nonzero(ink >= INK_LEVEL)
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return look.finished(canvas), (x + int(left), y + int(top), x + int(right), y + int(bottom))


def write(out: Path, seed: int = 0) -> None:
    """Write both data sets into ``out``, which must not hold them yet.

    Raises:
        OSError: when a file cannot be written.
        OutputError: when ``out/padded`` is there already.
    """
    digits = load_digits()
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch)
        for index, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = plain / _place(index, int(label))
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_image(path, on_paper(scan))
        make_padded(plain, out / "padded")
    lines: dict[Path, list[str]] = {}
    for index, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = out / "textured" / _place(index, int(label))
        path.parent.mkdir(parents=True, exist_ok=True)
        image, box = on_texture(scan, np.random.default_rng([seed, index]))
        _write_image(path, image)
        lines.setdefault(path.parent, []).append("\t".join([path.name, *map(str, box)]))
    for folder, rows in lines.items():
        (folder / "boxes.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _place(index: int, label: int) -> Path:
    return Path("val" if index % 5 == 0 else "train") / str(label) / f"{index:04}.png"


def _write_image(path: Path, image: Image) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} cannot be written")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default %(default)s)")
    options = parser.parse_args()
    try:
        write(options.out, options.seed)
    except (SptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
