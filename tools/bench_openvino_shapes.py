"""What it gains that OpenVINO knows every shape: a model compiled for any batch and for one size, taking turns.

    python tools/bench_openvino_shapes.py MODEL.onnx [MODEL.onnx ...] [--batch 1,8] [--rounds N] [--repeats N]

In each precision that this processor computes in; with the model's own selection, on noise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from two_ways import Opened, Run, main

from spt_deploy.runtimes.base import Arrays
from spt_deploy.runtimes.onnx_file import load_onnx
from spt_deploy.runtimes.openvino_runner import compile_model, options_for, precisions_here


def settings(model: Path, size: int, feeds: Arrays) -> dict[str, Opened]:
    """By precision."""
    return {precision: partial(opened, model, size, feeds, precision) for precision in precisions_here()}


def opened(model: Path, size: int, feeds: Arrays, precision: str) -> dict[str, Run]:
    """A run of the model compiled for any size of batch, and of one compiled for this size."""
    runs: dict[str, Run] = {}
    for way, batch in (("compiled for any size", None), ("for this one", size)):
        compiled = compile_model(load_onnx(model), model.name, options_for(precision), batch)
        runs[way] = partial(compiled.create_infer_request().infer, feeds)
    return runs


if __name__ == "__main__":
    main(__doc__, settings, rounds=9)
