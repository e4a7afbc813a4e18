"""A model in ONNX Runtime on a CPU, in sessions that suit the sizes of batch that are expected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays, usable_cores
from spt_deploy.runtimes.parts import cut, together_of

_FAST_BYTES = 2 * 224 * 224 * 4  # of a core, four for each pixel of its images: measured on cores with 2 MiB of cache


class SessionsByBatch:
    """Runs a model on batches of any size, on a few threads at a time.

    A batch of the size that is expected, or less, is computed in parts at the same time where it can be so divided, in
    a session whose runs have their share of the cores; others one part after the other in a session whose runs have
    all of them. Each session has its own copy of the weights, and is opened when it is first needed.

    Args:
        make: opens a session whose runs have so many threads; None is all cores.
        image_bytes: four for each pixel of an image; None, as on a GPU, computes batches as they come.
        lanes: calls of ``run`` at the same time, each on its share of the cores, and one part after the other.
        cores: to use; all of them if None.
    """

    def __init__(
        self, make: Callable[[int | None], Any], image_bytes: int | None, lanes: int = 1, cores: int | None = None
    ) -> None:
        self._make, self._image_bytes, self._lanes = make, image_bytes, lanes
        self._cores = cores or usable_cores()
        self._sessions: dict[int | None, Any] = {}  # by threads of a run
        self._names: list[str] = []  # of the outputs
        self._expected = self._together = 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def expect(self, batch: int | None) -> Sequence[str]:
        """Open the session for this size, or for any; the names of the outputs."""
        self._expected = batch or 1
        alone = self._image_bytes is None or self._lanes > 1
        together = 1 if alone else together_of(self._expected, self._cores)
        if together != self._together:
            self.close_pool()
            self._together = together
        if together > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(together, thread_name_prefix="onnxruntime")
        self._session(self._threads(together))
        return self._names

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs by name.

        Args:
            feeds: inputs by name; the first dimension is the batch, of all but scalars.
        """
        count = len(feeds[IMAGES_INPUT])
        together = self._together if count <= self._expected else 1
        if count < together and None in self._sessions:
            together = 1
        session = self._session(self._threads(together))
        size = min(self._most(self._cores // (together * self._lanes)) or count, -(-count // together))
        parts = cut(feeds, count, size)
        run = session.run
        if together == 1 or self._pool is None:
            found = [run(None, part) for part in parts]
        else:
            found = list(self._pool.map(lambda part: run(None, part), parts))
        if len(found) == 1:
            return dict(zip(self._names, found[0], strict=True))
        return {name: np.concatenate(rows) for name, rows in zip(self._names, zip(*found, strict=True), strict=True)}

    def close_pool(self) -> None:
        """End the threads that compute parts; ``expect`` starts others."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _most(self, cores: int) -> int | None:
        """Images that so many cores compute fast; None is any number."""
        return None if self._image_bytes is None else max(1, max(1, cores) * _FAST_BYTES // self._image_bytes)

    def _threads(self, together: int) -> int | None:
        at_once = together * self._lanes
        return None if at_once == 1 else max(1, self._cores // at_once)

    def _session(self, threads: int | None) -> Any:
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = self._make(threads)
                self._names = [output.name for output in self._sessions[threads].get_outputs()]
            return self._sessions[threads]
