"""A file in 8-bit integers for timing only: scales from random images, and no question of its accuracy.

python tools/int8_unchecked.py MODEL.onnx OUT.onnx

`spt-deploy export --int8` refuses a model with random weights, as its answers change with the smallest rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx

from spt_deploy.runtimes.onnx_file import facts_of, inlined, load_onnx
from spt_export.int8 import to_int8

IMAGES = 4


def main() -> None:
    """Read, quantise, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    model = inlined(load_onnx(given.model))
    shape = facts_of(model, given.model.name).image_input.shape
    images = np.random.default_rng(0).standard_normal((IMAGES, *shape), dtype=np.float32)
    onnx.save(to_int8(model, [images]).model, given.out)


if __name__ == "__main__":
    main()
