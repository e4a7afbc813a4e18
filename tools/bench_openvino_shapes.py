"""What it gains that OpenVINO knows every shape: a model compiled for any batch and for one size, taking turns.

    python tools/bench_openvino_shapes.py MODEL.onnx [MODEL.onnx ...] [--batch 1,8] [--rounds 25]

In each precision that this processor computes in; with the model's own selection, on noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spt_deploy.bench import take_turns
from spt_deploy.runtimes.base import Arrays, graph_inputs
from spt_deploy.runtimes.onnx_file import load_onnx, read_facts
from spt_deploy.runtimes.openvino_runner import compile_model, options_for, precisions_here


def compiled_for(model: Path, precision: str, batch: int | None, feeds: Arrays) -> Callable[[], object]:
    """A run of the model, compiled for this size of batch, or for any if None."""
    request = compile_model(load_onnx(model), model.name, options_for(precision), batch).create_infer_request()
    return lambda: request.infer(feeds)


def main() -> None:
    """Print a line for each model, precision and size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--batch", default="1,8", help="sizes of batch, with commas")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    sizes = [int(size) for size in given.batch.split(",")]
    for model in given.models:
        facts = read_facts(model)
        for precision in precisions_here():
            for size in sizes:
                noise = np.random.default_rng(0).standard_normal((size, 3, *facts.preprocessing.size), dtype=np.float32)
                feeds = graph_inputs(facts, facts.image_input.of(noise))
                runs = {str(batch): compiled_for(model, precision, batch, feeds) for batch in (None, size)}
                any_size, one_size = take_turns(runs, images=size, rounds=given.rounds)
                print(
                    f"{model.name} {precision} batch {size}: {any_size.median_ms:.1f} ms compiled for any size, "
                    f"{one_size.median_ms:.1f} ms for this one, {one_size.speedup:.2f} times as fast",
                    flush=True,
                )


if __name__ == "__main__":
    main()
