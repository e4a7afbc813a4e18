"""Two ways to run a model, taking turns: what the benches of one question each have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spt_deploy.bench import Turns
from spt_deploy.runtimes.base import Arrays, graph_inputs
from spt_deploy.runtimes.onnx_file import read_facts

Run = Callable[[], object]
Opened = Callable[[], Mapping[str, Run]]  # opens both ways anew


def main(doc: str, settings: Callable[[Path, int, Arrays], Mapping[str, Opened]], rounds: int) -> None:
    """Print a line for each model, setting and size of batch; with the model's own selection, on noise.

    Args:
        doc: what ``--help`` says.
        settings: by name (a runtime, a precision), how to open both ways for a model, a size of batch and its inputs.
        rounds: of each opening, unless said otherwise.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--batch", default="1,8", help="sizes of batch, with commas")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each opening")
    parser.add_argument("--repeats", type=int, default=3, help="times that both are opened anew")
    given = parser.parse_args()
    for model in given.models:
        facts = read_facts(model)
        for size in map(int, given.batch.split(",")):
            noise = np.random.default_rng(0).standard_normal((size, 3, *facts.preprocessing.size), dtype=np.float32)
            feeds = graph_inputs(facts, facts.image_input.of(noise))
            for name, opened in settings(model, size, feeds).items():
                turns, ways = Turns(size), list[str]()
                for _ in range(given.repeats):
                    runs = dict(opened())
                    ways = list(runs)
                    turns.take(runs, given.rounds)
                    runs.clear()  # before the next are opened
                first, second = turns.timings(ways)
                print(
                    f"{model.name} {name} batch {size}: {first.median_ms:.1f} ms {first.name}, "
                    f"{second.median_ms:.1f} ms {second.name}, {second.speedup:.2f} times as fast",
                    flush=True,
                )
