"""What `test_ranks.py` starts twice by torchrun; each process leaves what it found in a folder.

torchrun --nproc-per-node 2 -m tests.spt_deploy.training.rank_worker DATA OUT
"""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from pathlib import Path

import torch

from spt_deploy.errors import InputError, ResultError
from spt_deploy.training.gradient import StepWeights, distribute, parts_of_step, without_reduction
from spt_deploy.training.loader import Batch, collate
from spt_deploy.training.loop import Trainer
from spt_deploy.training.ranks import Ranks, join_ranks
from spt_deploy.training.report import Reports
from spt_deploy.workflows.train import train
from tests.spt_deploy.training.random_batches import batch_of, losses_of, model_without_noise
from tests.spt_deploy.training.support import tiny_config

ALPHA = 0.5
# name -> gate bias, and the batches of each process's step
STEPS: dict[str, tuple[float, list[list[range]]]] = {
    "uneven": (0.0, [[range(0, 3), range(3, 5)], [range(5, 9), range(0)]]),
    "one process has nothing": (0.0, [[range(0, 3)], [range(0)]]),
    "nothing is kept": (-30.0, [[range(0, 3)], [range(3, 5)]]),
}


def gradient(ranks: Ranks, gate_bias: float, batches: list[Batch], out: Path) -> None:
    model = model_without_noise(gate_bias)
    losses = losses_of(model, touch=True)
    losses.training = True  # of the losses alone: the touch is for training, the model stays without noise
    module = distribute(losses, ranks)
    counts = ranks.sum([sum(len(b.paths) for b in batches), sum(int(b.has_mask.sum()) for b in batches)])
    weights = StepWeights(*counts, ranks.world)
    parts = parts_of_step(range(len(batches)), batches, ranks)
    for place, (_, batch) in enumerate(parts, start=1):
        with without_reduction(module, last=place == len(parts)):
            _, task, select = module(batch)
            (task if batch is None else weights.loss(batch, task, select, ALPHA)).backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, out)


def run(data: Path, out: Path, rank: int) -> None:
    """Two epochs at one go, and the same interrupted after the first by a signal to one of the processes."""
    evaluate = Trainer.evaluate

    def evaluate_and_keep(trainer: Trainer) -> dict[str, object]:
        record = evaluate(trainer)
        torch.save(trainer.model.state_dict(), out / f"weights-{trainer.config.out.name}-{rank}.pt")
        return record

    Trainer.evaluate = evaluate_and_keep  # type: ignore[method-assign]

    def interrupt(text: str) -> None:
        if text.startswith("epoch 1/2"):
            os.kill(os.getpid(), signal.SIGTERM)

    # 36 images in batches of 8: the last round leaves one process without any
    assert not train(tiny_config(data, out / "straight", accumulate=2)).interrupted
    config = tiny_config(data, out / "resumed", accumulate=2)
    assert train(config, reports=Reports(say=interrupt)).interrupted
    assert train(config, resume=True).epochs == 2


def run_with_broken(out: Path, rank: int) -> None:
    """A run that may leave out the images of ``out/broken`` that cannot be read, and one that may not."""
    said: list[str] = []
    train(tiny_config(out / "broken", out / "lenient", epochs=1, max_broken=0.2), reports=Reports(say=said.append))
    (out / f"said-{rank}.txt").write_text("\n".join(said), encoding="utf-8")
    try:
        train(tiny_config(out / "broken", out / "strict", epochs=1, max_broken=0.1))
    except InputError as error:
        (out / f"strict-{rank}.txt").write_text(str(error), encoding="utf-8")


def interrupted(rank: int) -> bool:
    """Whether the threads of an own group end when Ctrl-C comes while process 0 waits for process 1."""
    with join_ranks(torch.device("cpu")) as ranks:
        group = weakref.ref(ranks.group)
    assert group() is None
    try:
        with join_ranks(torch.device("cpu")) as ranks:
            group = weakref.ref(ranks.group)
            if rank == 0:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                signal.setitimer(signal.ITIMER_REAL, 0.5)  # in the sum by then, also on a busy machine
            else:
                time.sleep(1.5)
            ranks.sum([1.0])
    except KeyboardInterrupt as error:
        return group() is None and rank == 0 and error.__traceback__ is not None
    return rank == 1


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    group: weakref.ref[object] = weakref.ref(main)  # which does not go
    try:
        with join_ranks(torch.device("cpu")) as ranks:
            for name, (gate_bias, of_rank) in STEPS.items():
                batches = [batch_of(numbers) if len(numbers) else collate([]) for numbers in of_rank[rank]]
                gradient(ranks, gate_bias, batches, out / f"{name}-{rank}.pt")
            run(data, out, rank)
            run_with_broken(out, rank)
            assert interrupted(rank)
            group = weakref.ref(ranks.group)
            sys.setswitchinterval(100)  # what still needs the interpreter on another thread comes too late
            ranks.sum([1.0])
            if rank == 1:
                raise InputError("the disk of process 1 is gone")
            ranks.sum([1.0])
    except (InputError, ResultError) as error:
        (out / f"error-{rank}.txt").write_text(str(error), encoding="utf-8")
        (out / f"threads-{rank}.txt").write_text("left" if group() else "ended", encoding="utf-8")


if __name__ == "__main__":
    main()
