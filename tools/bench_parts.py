"""What it gains to compute a batch in parts: whole on all cores, and cut as runners cut it, taking turns.

    python tools/bench_parts.py MODEL.onnx [MODEL.onnx ...] [--batch 2,8] [--rounds N] [--repeats N]

In ONNX Runtime, and in OpenVINO in each precision that this processor computes in; with the model's own selection, on
noise. See spt_deploy/runtimes/parts.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from two_ways import Opened, Run, main

from spt_deploy.runtimes.base import Arrays
from spt_deploy.runtimes.onnx_file import load_onnx, read_facts
from spt_deploy.runtimes.onnxruntime_batches import SessionsByBatch
from spt_deploy.runtimes.onnxruntime_runner import open_session, sessions_by_batch
from spt_deploy.runtimes.openvino_batches import ByBatch
from spt_deploy.runtimes.openvino_runner import (
    compile_model,
    images_a_core_computes_fast,
    options_for,
    precisions_here,
    with_requests,
)

Batches = ByBatch | SessionsByBatch


def settings(model: Path, size: int, feeds: Arrays) -> dict[str, Opened]:
    """By runtime and precision."""
    found: dict[str, Opened] = {"onnxruntime": partial(in_onnxruntime, model, size, feeds)}
    for precision in precisions_here():
        found[f"openvino {precision}"] = partial(in_openvino, model, size, feeds, precision)
    return found


def in_onnxruntime(model: Path, size: int, feeds: Arrays) -> dict[str, Run]:
    """Both ways in ONNX Runtime."""
    whole = SessionsByBatch(partial(open_session, model, "cpu"), None)
    return both(whole, sessions_by_batch(model, read_facts(model), "cpu"), size, feeds)


def in_openvino(model: Path, size: int, feeds: Arrays, precision: str) -> dict[str, Run]:
    """Both ways in OpenVINO."""

    def compiled(images: int | None, together: int) -> Any:
        return compile_model(load_onnx(model), model.name, with_requests(options_for(precision), together), images)

    most = images_a_core_computes_fast(read_facts(model), precision)
    return both(ByBatch(compiled, whole=True), ByBatch(compiled, most=most), size, feeds)


def both(whole: Batches, parts: Batches, size: int, feeds: Arrays) -> dict[str, Run]:
    """A run of each, open for such batches."""
    whole.expect(size)
    parts.expect(size)
    return {"whole": partial(whole.run, feeds), "in parts": partial(parts.run, feeds)}


if __name__ == "__main__":
    main(__doc__, settings, rounds=4)
