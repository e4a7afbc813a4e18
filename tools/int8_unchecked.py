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
    facts = facts_of(model, given.model.name)
    noise = np.random.default_rng(0).standard_normal((IMAGES, 3, *facts.preprocessing.size), dtype=np.float32)
    threshold = facts.model.backbone.threshold if facts.runtime_threshold else None
    onnx.save(to_int8(model, [facts.image_input.of(noise)], threshold=threshold).model, given.out)


if __name__ == "__main__":
    main()
