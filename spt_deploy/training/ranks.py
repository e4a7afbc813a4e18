"""The processes of a run: one, or as many as ``torchrun`` started, and what they tell each other.

``torchrun`` sets RANK, LOCAL_RANK and WORLD_SIZE in each process. Numbers and objects travel by a gloo group of their
own, gradients (DistributedDataParallel's work) by the default group, which is nccl where there are GPUs.
"""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from spt_deploy.errors import ResultError, RuntimeMissingError

T = TypeVar("T")


@dataclass
class Ranks:
    """This process among the others; every method but the properties must be called by all of them alike.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
        group: the gloo group that numbers and objects travel by; ``None`` for a process that is alone or has left.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes of as many numbers from each."""
        if self.is_alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their numbers."""
        if self.is_alone:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]  # each is filled

    def of_main(self, value: T) -> T:
        """The value of the main process."""
        return self.gather(value)[0]

    def leave(self) -> None:
        """Close the connections, so that whoever waits for this process learns of its end, and end their threads.

        A thread of gloo lets go of the tensor it was given a moment after the answer is there, and needs the
        interpreter for it: one that comes too late, when the interpreter ends, aborts the process.
        """
        group, self.group = self.group, None
        if group is not None:
            dist.destroy_process_group(group)
            del group  # the last reference, whose end waits for the threads


def is_main_process() -> bool:
    """Whether this process writes and prints; also before it has met the others."""
    return int(os.environ.get("RANK", "0")) == 0


def resume_command(folder: Path) -> str:
    """How to go on with the run in ``folder``: with as many processes as now."""
    program = "spt-deploy" if os.environ.get("WORLD_SIZE", "1") == "1" else "torchrun ... -m spt_deploy"
    return f"{program} train --resume --out {shlex.quote(str(folder))}"


def device_of_rank(name: str) -> torch.device:
    """The device of that name for this process: each on a machine takes a GPU of its own; ``auto`` where there is one.

    Raises:
        RuntimeMissingError: when a GPU is asked for and there is none, or there are fewer than processes.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeMissingError("--device cuda: PyTorch finds no CUDA device here; train with --device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise RuntimeMissingError(
            f"process {local} of this machine has no GPU, PyTorch finds {torch.cuda.device_count()}; "
            "start torchrun with at most that many processes, or train with --device cpu"
        )
    return torch.device("cuda", local)


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes that ``torchrun`` started, for the block; alone where it started none.

    A process group that the caller has made already is used, and left.

    Raises:
        ResultError: when another process has ended before its time.
    """
    is_ours = not dist.is_initialized()
    if is_ours and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if is_ours:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        ranks.group = dist.new_group(backend="gloo")
        yield ranks
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # which may hold the group
        if not isinstance(error, RuntimeError) or not _is_lost_connection(error):
            raise
        raise ResultError(
            f"process {ranks.rank} stops because another process of the run has ended; its own message says why"
        ) from error
    finally:
        try:
            ranks.leave()
        finally:
            if is_ours and dist.is_initialized():
                dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


__all__ = ["Ranks", "device_of_rank", "is_main_process", "join_ranks"]
