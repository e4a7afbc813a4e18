"""A model in ONNX Runtime on a CPU, in sessions that suit the sizes of batch that are expected."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays, usable_cores
from spt_deploy.runtimes.parts import cut

_FAST_BYTES = 2 * 224 * 224 * 4  # of a core, four for each pixel of its images: measured on cores with 2 MiB of cache


class SessionsByBatch:
    """Runs a model on batches of any size, on a few threads at a time.

    A batch of the size that is expected, or less, is computed in as many shares at the same time as divide both it and
    the cores; others in one. A share is computed piece by piece, each as large as is fast. A session's own threads
    serve all who call it, so that with these there are as many as cores. Each session has its own copy of the weights;
    one for all cores and one for shares are kept, from when they are first needed.

    Args:
        make: opens a session with so many threads, the caller's among them; None is all cores.
        image_bytes: four for each pixel of an image; None, as on a GPU, computes batches as they come.
        lanes: calls of ``run`` at the same time.
        cores: to use; all of them if None.
    """

    def __init__(
        self, make: Callable[[int | None], Any], image_bytes: int | None, lanes: int = 1, cores: int | None = None
    ) -> None:
        self._make, self._image_bytes, self._lanes = make, image_bytes, lanes
        self._cores = cores or usable_cores()
        self._whole: Any = None  # the session of all cores
        self._shared: Any = None  # that of shares, or of lanes
        self._names: list[str] = []  # of the outputs
        self._expected = self._together = 1
        self._few = 0  # batches with too few images to share
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def expect(self, batch: int | None) -> Sequence[str]:
        """Open the session for this size, or for any; the names of the outputs."""
        self._expected = batch or 1
        together = 1 if self._image_bytes is None or self._lanes > 1 else math.gcd(self._expected, self._cores)
        if together != self._together:
            self.close_pool()
            self._together, self._shared = together, None
        self._session(together)
        return self._names

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs by name.

        Args:
            feeds: inputs by name; the first dimension is the batch, of all but scalars.
        """
        count = len(feeds[IMAGES_INPUT])
        together = self._together if count <= self._expected else 1
        if count < together:
            self._few += 1
            together = 1 if self._whole is not None or self._few > 1 else together
        session = self._session(together)
        most = self._most(self._cores // (together * self._lanes)) or count

        def pieces(share: Arrays) -> list[Any]:
            images = len(share[IMAGES_INPUT])
            return [session.run(None, piece) for piece in cut(share, images, _even(images, most))]

        shares = list(cut(feeds, count, -(-count // together)))
        if len(shares) == 1:
            found = pieces(shares[0])
        else:
            self._pool = self._pool or ThreadPoolExecutor(self._together, thread_name_prefix="onnxruntime")
            found = [piece for share in self._pool.map(pieces, shares) for piece in share]
        if len(found) == 1:
            return dict(zip(self._names, found[0], strict=True))
        return {name: np.concatenate(rows) for name, rows in zip(self._names, zip(*found, strict=True), strict=True)}

    def close_pool(self) -> None:
        """End the threads that compute shares; ``run`` starts others."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _most(self, cores: int) -> int | None:
        """Images that so many cores compute fast; None is any number."""
        return None if self._image_bytes is None else max(1, max(1, cores) * _FAST_BYTES // self._image_bytes)

    def _session(self, together: int) -> Any:
        at_once = together * self._lanes
        with self._lock:
            session = self._whole if at_once == 1 else self._shared
            if session is None:
                session = self._make(None if at_once == 1 else max(1, self._cores - at_once + 1))
                self._names = [output.name for output in session.get_outputs()]
                if at_once == 1:
                    self._whole = session
                else:
                    self._shared = session
            return session


def _even(count: int, most: int) -> int:
    """The size of pieces that are as few as can be and hardly differ."""
    return -(-count // -(-count // most))
