"""Processes that read a run's images, forked from a server that does nothing else.

A fork of the run itself would take along, locked for good, whatever lock one of its other threads holds at that moment:
OpenCV's, OpenMP's, CUDA's, a progress bar's. That stops a run in one of some thousand starts, without a word.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from spt_deploy.errors import ResultError

# The server leaves the run's process group; then what all readers need is imported once, not once a process.
_SERVER = ("spt_deploy.training.reading_server", "cv2", "spt_deploy.training.loader")
_LOST = "DataLoader worker"  # how PyTorch's message begins when one of its processes has ended
_REMEDY = (
    "most often memory is short, or a container's /dev/shm is (docker run --shm-size 8g); "
    "fewer --workers need less of both, and --workers 0 reads without other processes"
)

_NO_MORE = object()

T = TypeVar("T")
B = TypeVar("B")


def reader(dataset: Dataset[T], processes: int, collate: Callable[[Sequence[T]], B], **options: Any) -> DataLoader[T]:
    """A DataLoader that reads in ``processes`` processes, which last as long as it does, or in this one where it is 0.

    Unlike multiprocessing's own, these processes do not run the main script again: it needs no
    ``if __name__ == "__main__":`` and may come from standard input, but nothing that is sent may be defined in it.

    Args:
        dataset: of samples by index; it can be pickled.
        processes: that read.
        collate: makes samples a batch; what it makes must have ``pin_memory`` where ``options`` ask for that.
        options: of the DataLoader.
    """
    if not processes:
        return DataLoader(dataset, collate_fn=collate, **options)
    context = _Context()
    context.set_forkserver_preload(list(_SERVER))
    return DataLoader(
        _PickledOnce(dataset),
        collate_fn=_Wrapping(collate),
        num_workers=processes,
        multiprocessing_context=context,
        persistent_workers=True,
        worker_init_fn=_start,
        **options,
    )


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """One pass over the batches of a `reader`.

    Raises:
        ResultError: when a process that reads cannot be started, has ended, or cannot hand over what it read.
    """
    try:
        with _ends_told():
            iterator = iter(loader)
    except FileNotFoundError:  # it is about a folder for temporary files
        raise
    except (EOFError, OSError) as error:
        raise ResultError(f"processes that read images cannot be started: {_REMEDY} ({error})") from error
    while True:
        with _ends_told():
            batch = next(iterator, _NO_MORE)
        if batch is _NO_MORE:
            return
        if isinstance(batch, _Parcel):
            batch = batch.open()
        if isinstance(batch, _Stuck):
            raise ResultError(f"a process that reads images cannot hand them over: {_REMEDY} ({batch.reason})")
        yield batch


@contextmanager
def _ends_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_LOST):
            raise
        raise ResultError(f"a process that reads images has ended: {_REMEDY} ({error})") from error


class _Process(ForkServerProcess):
    """Started without word of the main module, which multiprocessing would run again in it."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            _start_server()
            super().start()
        finally:
            sys.modules["__main__"] = main


def _start_server() -> None:
    """Unless it runs. A signal to the run's group, which the server is in as it starts, would end it."""
    resource_tracker.ensure_running()  # the server's start does that too, and unblocks both signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(ForkServerContext):
    Process = _Process


class _PickledOnce(Dataset[T]):
    """A dataset that is pickled for the first process only: COCO's records take seconds. It arrives as itself."""

    def __init__(self, dataset: Dataset[T]) -> None:
        self._dataset = dataset
        self._pickled: bytes | None = None

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # PyTorch's Dataset does not promise a length

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        if self._pickled is None:
            self._pickled = pickle.dumps(self._dataset, pickle.HIGHEST_PROTOCOL)
        return pickle.loads, (self._pickled,)


class _Wrapping(Generic[T, B]):
    """Collates, in a reading process, and puts what comes of it into shared memory.

    Left to PyTorch, that would happen in a thread which drops the batch when it fails; the run would wait for ever.
    """

    def __init__(self, collate: Callable[[Sequence[T]], B]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[T]) -> _Parcel | _Stuck:
        batch = self._collate(samples)
        try:
            return _Parcel(batch)
        except (OSError, RuntimeError) as error:  # PyTorch raises both where memory or files are short
            return _Stuck(error)


class _Parcel:
    """A batch on its way; to be opened once."""

    def __init__(self, batch: object) -> None:
        self._pickled = bytes(ForkingPickler.dumps(batch))  # tensors as handles of shared memory

    def open(self) -> Any:
        """The batch, or `_Stuck` where the process that holds it has ended."""
        try:
            return ForkingPickler.loads(self._pickled)
        except (EOFError, OSError, RuntimeError) as error:
            return _Stuck(error)

    def pin_memory(self) -> Any:
        batch = self.open()
        return batch if isinstance(batch, _Stuck) else batch.pin_memory()


class _Stuck:
    """In place of a batch that could not be handed over."""

    def __init__(self, error: Exception) -> None:
        self.reason = (str(error) or type(error).__name__).splitlines()[0]


def _start(number: int) -> None:
    """One thread each: the processes are the parallelism.

    And a process group of its own: a signal to the run's group is the main process's to answer, which needs its readers
    until its step is done. ``timeout`` and torchrun send one there.
    """
    import cv2
    import torch

    os.setpgid(0, 0)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """PyTorch watches the parent of this process; that is the server, which lasts as long as this process does."""
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)
