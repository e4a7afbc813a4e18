"""Swin, SPT without and SPT with select loss, at equal budget: what does supervised selection give?

    python compare.py data/digits runs/digits

Trains every arm on every data set of `make_digits.py` with every seed, some at a time, each on one core, and prints the
table; `results.json` in the runs' folder has what it was made from. A run that is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.complexity import complexity, kept_tokens

DATA_SETS = {"padded": 5, "textured": 11}  # epochs of each
ARMS = {
    "Swin": ["--model", "swin_micro"],
    "SPT, no select loss": ["--model", "spt_micro", "--alpha", "0"],
    "SPT, select loss": ["--model", "spt_micro", "--alpha", "1"],
}
SIZE = 128  # pixels of a side
# The same for every arm. A digit mirrored is no digit; gates must be fast in a run of two minutes.
BUDGET = ["--imgsz", str(SIZE), "--batch", "16", "--lr", "1e-3", "--flip", "0", "--gate-lr-scale", "30"]


@dataclass(frozen=True)
class Run:
    """One training: a data set, an arm, a seed."""

    data: str
    arm: str
    seed: int

    def folder(self, runs: Path) -> Path:
        return runs / f"{self.data}-{list(ARMS).index(self.arm)}-{self.seed}"


def train(run: Run, data: Path, runs: Path, epochs: int) -> dict[str, Any]:
    """The last epoch's record, of a run that may be finished already; the last, for choosing the best is choosing."""
    folder = run.folder(runs)
    lines = _records(folder)
    if len(lines) != epochs:
        options = [*ARMS[run.arm], *BUDGET, "--epochs", str(epochs), "--seed", str(run.seed)]
        command = [sys.executable, "-m", "spt_deploy", "train", str(data / run.data), *options]
        command += ["--device", "cpu", "--out", str(folder), "--overwrite"]
        # A model this small is trained faster by two processes on a core each than by one on two.
        result = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
        lines = _records(folder)
    seconds = sum(line["seconds"] for line in lines)
    return lines[-1] | {"model": ARMS[run.arm][1], "run_seconds": seconds}


def _records(folder: Path) -> list[dict[str, Any]]:
    """Of each epoch; none of a run that was killed: a run writes its report last, after best.pt."""
    path, report = folder / "metrics.jsonl", folder / "report.md"
    if not path.exists() or not report.exists() or report.stat().st_mtime_ns < path.stat().st_mtime_ns:
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gmacs(model: str, classes: int, ratios: Sequence[float]) -> float:
    """Multiply-accumulates of one image, in 10^9, at the share of tokens that each SPA block kept."""
    names = tuple(str(n) for n in range(classes))
    config = ModelConfig(BackboneConfig.from_name(model), "classify", names)
    kept = kept_tokens(config.backbone, (SIZE, SIZE), ratios) if ratios else ()
    return complexity(config, (SIZE, SIZE), kept).total.macs / 1e9


def row(data: str, arm: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the standard deviation of the accuracy."""
    top1 = [100 * r["val"]["top1"] for r in records]
    ratios = [r["val"]["select_ratio"] for r in records]
    objects = records[0]["val"]["object_ratio"]
    blocks = list(ratios[0])
    stages: dict[str, Any] = {}
    for stage in sorted({block.split(".")[0] for block in blocks}):
        of_stage = [100 * ratio[block] for ratio in ratios for block in blocks if block.startswith(stage)]
        stages[stage] = statistics.mean(of_stage)
    return {
        "data": data,
        "arm": arm,
        "top1": statistics.mean(top1),
        "top1_deviation": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "top1_of_seeds": top1,
        "select_ratio": stages,
        "object_ratio": {stride: 100 * ratio for stride, ratio in objects.items()},
        "gmacs": statistics.mean(gmacs(r["model"], 10, list(r["val"]["select_ratio"].values())) for r in records),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| data | model | top-1 | kept in stage 3 | kept in stage 4 | GMACs |",
        "|---|---|---|---|---|---|",
    ]
    for entry in rows:
        kept = [f"{entry['select_ratio'][s]:.1f} %" if s in entry["select_ratio"] else "100 %" for s in ("3", "4")]
        top1 = f"{entry['top1']:.1f} % ± {entry['top1_deviation']:.1f}"
        lines.append(f"| {entry['data']} | {entry['arm']} | {top1} | {kept[0]} | {kept[1]} | {entry['gmacs']:.4f} |")
        if entry["object_ratio"] and entry["arm"] == list(ARMS)[-1]:
            true = [f"{ratio:.1f} %" for ratio in entry["object_ratio"].values()]
            lines.append(
                f"| {entry['data']} | *tokens with a part of the object in them* | | {true[0]} | {true[1]} | |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that make_digits.py wrote")
    parser.add_argument("runs", type=Path, help="folder for the runs and results.json")
    parser.add_argument("--epochs", type=int, help="of every run (default: by the data set, minutes each)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every arm (default %(default)s)")
    parser.add_argument("--only", choices=tuple(DATA_SETS), help="one data set instead of both")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time (default: a core each)"
    )
    options = parser.parse_args()
    data_sets = (options.only,) if options.only else tuple(DATA_SETS)
    missing = [str(options.data / name) for name in data_sets if not (options.data / name).is_dir()]
    if missing:
        print(f"error: there is no folder {', '.join(missing)}; make it with make_digits.py", file=sys.stderr)
        return 2
    todo = [Run(data, arm, seed) for seed in range(options.seeds) for data in data_sets for arm in ARMS]
    start = time.perf_counter()
    done: dict[Run, dict[str, Any]] = {}

    def work(run: Run) -> None:
        done[run] = train(run, options.data, options.runs, options.epochs or DATA_SETS[run.data])
        val = done[run]["val"]
        kept = ", ".join(f"{block} {100 * ratio:.0f} %" for block, ratio in val["select_ratio"].items())
        print(
            f"[{time.perf_counter() - start:5.0f} s] {len(done)}/{len(todo)} {run.data}, {run.arm}, seed {run.seed}: "
            f"top-1 {100 * val['top1']:.1f} %{f', kept {kept}' if kept else ''}",
            file=sys.stderr,
            flush=True,
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, todo))
    rows = [
        row(data, arm, [done[Run(data, arm, seed)] for seed in range(options.seeds)])
        for data in data_sets
        for arm in ARMS
    ]
    epochs = {name: options.epochs or DATA_SETS[name] for name in data_sets}
    # Of the runs themselves: right also where some had been finished before.
    seconds = sum(record["run_seconds"] for record in done.values())
    document = {"epochs": epochs, "seeds": options.seeds, "run_seconds": seconds, "rows": rows}
    (options.runs / "results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"{len(done)} runs of {seconds / 60:.0f} minutes in all, {options.jobs} at a time", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
