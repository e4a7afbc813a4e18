"""What our operators gain in OpenVINO: a model with its functions and one with the operators, taking turns.

    python tools/bench_openvino_operators.py MODEL.onnx [MODEL.onnx ...] [--batch 1,8] [--rounds N] [--repeats N]

In each precision that this processor computes in, in parts as a runner does; with its own selection, on noise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from two_ways import Opened, Run, main

from spt_deploy.runtimes.base import Arrays
from spt_deploy.runtimes.onnx_file import load_onnx, read_facts
from spt_deploy.runtimes.openvino_batches import ByBatch
from spt_deploy.runtimes.openvino_extension.library import why_not
from spt_deploy.runtimes.openvino_runner import (
    compile_model,
    images_a_core_computes_fast,
    options_for,
    precisions_here,
    with_requests,
)
from spt_deploy.runtimes.parts import may_be_cut


def settings(model: Path, size: int, feeds: Arrays) -> dict[str, Opened]:
    """By precision.

    Raises:
        SystemExit: when the operators cannot be had.
    """
    if why_not():
        raise SystemExit(why_not())
    return {precision: partial(opened, model, size, feeds, precision) for precision in precisions_here()}


def opened(model: Path, size: int, feeds: Arrays, precision: str) -> dict[str, Run]:
    """A run of the model with its functions, and of one with our operators."""
    facts = read_facts(model)
    runs: dict[str, Run] = {}
    for way, has_operators in (("with functions", False), ("with operators", True)):

        def compiled(images: int | None, together: int, has_operators: bool = has_operators) -> Any:
            options = with_requests(options_for(precision), together)
            return compile_model(load_onnx(model), model.name, options, images, has_operators)

        most = images_a_core_computes_fast(facts, precision)
        by_batch = ByBatch(compiled, most=most, whole=not may_be_cut(facts))
        by_batch.expect(size)
        runs[way] = partial(by_batch.run, feeds)
    return runs


if __name__ == "__main__":
    main(__doc__, settings, rounds=9)
