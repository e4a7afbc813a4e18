"""What another threshold would keep: the models of `compare.py` with select loss, at thresholds from 0.01 to 0.5.

python thresholds.py data/digits runs/digits
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from spt_deploy.datasets.formats import read_data
from spt_deploy.errors import InputError, SptError
from spt_deploy.runtimes.torch_runner import deployed_checkpoint
from spt_deploy.training.loader import Batch, Loader
from spt_deploy.training.meters import TopAccuracy
from spt_deploy.training.samples import Samples
from spt_deploy.training.select_labels import SelectionMeter

DATA_SETS = ("padded", "textured")
SELECT_LOSS = 2  # the arm's number in the runs' names
THRESHOLDS = (0.01, 0.05, 0.1, 0.3, 0.5)  # of the score; the paper's is the first, and what the models learnt with


@torch.no_grad()
def measure(checkpoint: Path, data: Path) -> Iterable[tuple[float, float, dict[str, float], dict[str, float]]]:
    """Threshold, top-1, select ratio by block and ratio of tokens in objects by stride, on the validation images."""
    loaded = deployed_checkpoint(checkpoint)  # with the packing of an exported file: no answer depends on the batch
    model, preprocessing = loaded.build().eval(), loaded.facts.preprocessing
    loader = Loader(Samples(read_data(data).val, preprocessing, classes=10), 60)
    batches: list[Batch] = list(loader.epoch(0))
    for threshold in THRESHOLDS:
        model.backbone.threshold.fill_(torch.logit(torch.tensor(threshold)))
        top1, selection = TopAccuracy(), SelectionMeter(model.config.backbone.spa_blocks)
        for batch in batches:
            output = model(batch.images)
            top1.update(output, batch)
            selection.update(output.features, batch.masks, batch.has_mask)
        yield threshold, top1.result()["top1"], selection.select_ratio(), selection.object_ratio()


def show(data: Path, runs: Path) -> None:
    """Print the table.

    Raises:
        InputError: when there is no such run, or not the data of one.
    """
    checkpoints = {name: sorted(runs.glob(f"{name}-{SELECT_LOSS}-*/best.pt")) for name in DATA_SETS}
    if not any(checkpoints.values()):
        raise InputError(f"{runs} has no run with select loss ({DATA_SETS[0]}-{SELECT_LOSS}-0/best.pt); run compare.py")
    measured = {name: [list(measure(path, data / name)) for path in paths] for name, paths in checkpoints.items()}
    print("| data | threshold | top-1 | kept in stage 3 | kept in stage 4 |\n|---|---|---|---|---|")
    for name, seeds in measured.items():
        for rows in zip(*seeds, strict=True):
            top1 = 100 * statistics.mean(row[1] for row in rows)
            kept = [100 * statistics.mean(row[2][block] for row in rows) for block in ("3.2", "4.2")]
            print(f"| {name} | {rows[0][0]:g} | {top1:.1f} % | {kept[0]:.1f} % | {kept[1]:.1f} % |")
        if seeds:
            true = [f"{100 * ratio:.1f} %" for ratio in seeds[0][0][3].values()]
            print(f"| {name} | *tokens with a part of the object in them* | | {' | '.join(true)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that make_digits.py wrote")
    parser.add_argument("runs", type=Path, help="folder that compare.py wrote")
    options = parser.parse_args()
    try:
        show(options.data, options.runs)
    except SptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
