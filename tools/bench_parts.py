"""What it gains to compute a batch in parts: whole on all cores, and cut as runners cut it, taking turns.

    python tools/bench_parts.py MODEL.onnx [MODEL.onnx ...] [--batch 8] [--rounds 9]

In ONNX Runtime, and in OpenVINO in each precision that this processor computes in; with the model's own selection, on
noise. See spt_deploy/runtimes/parts.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spt_deploy.bench import take_turns
from spt_deploy.runtimes.base import graph_inputs
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


def contenders(model: Path) -> dict[str, tuple[ByBatch | SessionsByBatch, ByBatch | SessionsByBatch]]:
    """The model whole and in parts, by runtime and precision."""
    facts = read_facts(model)
    found: dict[str, tuple[ByBatch | SessionsByBatch, ByBatch | SessionsByBatch]] = {
        "onnxruntime": (
            SessionsByBatch(partial(open_session, model, "cpu"), None),
            sessions_by_batch(model, facts, "cpu"),
        )
    }
    for precision in precisions_here():

        def compiled(images: int | None, together: int, precision: str = precision) -> Any:
            options = with_requests(options_for(precision), together)
            return compile_model(load_onnx(model), model.name, options, images)

        most = images_a_core_computes_fast(facts, precision)
        found[f"openvino {precision}"] = ByBatch(compiled, whole=True), ByBatch(compiled, most=most)
    return found


def main() -> None:
    """Print a line for each model, runtime and precision, and size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--batch", default="2,8", help="sizes of batch, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    for model in given.models:
        facts = read_facts(model)
        for name, pair in contenders(model).items():
            for size in map(int, given.batch.split(",")):
                noise = np.random.default_rng(0).standard_normal((size, 3, *facts.preprocessing.size), dtype=np.float32)
                feeds = graph_inputs(facts, facts.image_input.of(noise))
                runs: dict[str, Callable[[], object]] = {}
                for how, batches in zip(("whole", "in parts"), pair, strict=True):
                    batches.expect(size)
                    runs[how] = partial(batches.run, feeds)
                whole, parts = take_turns(runs, images=size, rounds=given.rounds)
                print(
                    f"{model.name} {name} batch {size}: {whole.median_ms:.1f} ms whole, {parts.median_ms:.1f} ms in "
                    f"parts, {parts.speedup:.2f} times as fast",
                    flush=True,
                )


if __name__ == "__main__":
    main()
