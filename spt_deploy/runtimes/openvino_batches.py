"""A model in OpenVINO, compiled for the sizes of batch that are expected, and once for all the others.

OpenVINO is up to a seventh faster where it knows every shape when it compiles (docs/cpu.md), so that a model is
compiled for each size of batch that somebody expects. A smaller batch is filled up with copies of its last image, as
long as what that has cost so far is less than compiling again. Then, or when a larger one comes, it is compiled for any
size: a camera's batches have all sizes, and nobody should wait for a compiler each time that another one comes.

A size that is known is also computed in parts of equal size, where it can be so divided (parts.py).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from queue import LifoQueue
from typing import Any

import numpy as np

from spt_deploy.runtimes.base import IMAGES_INPUT, Arrays, usable_cores
from spt_deploy.runtimes.parts import Parts, cut, parts_of

MOST_SIZES = 2  # compiled at a time, besides that for any size: each has its own copy of the weights


class _Compiled:
    """A model for one size of batch, or for any.

    Where one part runs at a time it does so in the thread that calls (and in OpenVINO's beside it, where a lane has
    several cores), which OpenVINO grants a model that runs one request at a time; others it hands to its own threads,
    and where all cores are busy these wait for one each time. So each lane has a model, made when it is first needed.

    Attributes:
        batch: images that it takes; None where it takes any number.
        names: of its outputs.
        seconds: that its last run took; 0 before the first.
    """

    def __init__(
        self, make: Callable[[], Any], batch: int | None, parts: Parts, lanes: int, names: Sequence[str]
    ) -> None:
        compiled = make()
        self.batch = batch
        self.names = names or [output.any_name for output in compiled.outputs]
        self.seconds = 0.0
        self._make, self._parts = make, parts
        self._size = batch and batch // parts.number
        self._requests: LifoQueue[list[Any]] = LifoQueue()  # a lane's, one for each part; none before it is needed
        for _ in range(lanes - 1):
            self._requests.put([])
        self._requests.put(self._made(compiled))

    def run(self, feeds: Arrays, count: int) -> Arrays:
        size = self._size or count
        requests = self._requests.get()
        try:
            requests = requests or self._made(self._make())
            began = time.perf_counter()
            ran = requests[: -(-count // size)]
            with ExitStack() as running:  # which waits for all of them, whatever happens
                for request, part in zip(ran, cut(feeds, count, size, fill=True), strict=True):
                    if self._parts.together == 1:
                        request.infer(part, share_inputs=True, share_outputs=True)
                    else:
                        running.callback(request.wait)  # which returns at once of one that never began
                        request.start_async(part, share_inputs=True)
            self.seconds = time.perf_counter() - began
            return {name: np.concatenate([each.get_tensor(name).data for each in ran])[:count] for name in self.names}
        finally:
            self._requests.put(requests)

    def _made(self, compiled: Any) -> list[Any]:
        return [compiled.create_infer_request() for _ in range(self._parts.number)]


class ByBatch:
    """Runs a model on batches of any size, on a few threads at a time.

    Args:
        compile_for: compiles it for so many images, None means any number, and for so many requests at the same time:
            once for each lane that is used, from its thread.
        lanes: calls of ``run`` at the same time.
        outputs: names of those that are wanted; none are all, each by a name of OpenVINO's choice where it has several.
        cores: by which a batch is cut, where there is one lane; all of them if None.
        most: images that a core computes fast; any number if None.
        whole: whether batches are computed uncut.
    """

    def __init__(
        self,
        compile_for: Callable[[int | None, int], Any],
        lanes: int = 1,
        outputs: Sequence[str] = (),
        cores: int | None = None,
        most: int | None = None,
        whole: bool = False,
    ) -> None:
        self._compile_for, self._lanes, self._outputs = compile_for, lanes, outputs
        self._cores = (cores or usable_cores()) if lanes == 1 else 1
        self._most, self._whole = most, whole
        self._known: OrderedDict[int, _Compiled] = OrderedDict()  # by size, the one that was of use last at the end
        self._any: _Compiled | None = None
        self._wasted = 0.0  # seconds, by filling up
        self._seconds = 0.0  # that compiling took last
        self._lock = threading.Lock()

    @property
    def sizes(self) -> Sequence[int]:
        """Of batch that it is compiled for."""
        return sorted(self._known)

    def expect(self, batch: int | None) -> Sequence[str]:
        """Compile for this size, or for any, where that was not done; the names of the outputs."""
        with self._lock:
            if batch is None:
                return self._for_any().names
            compiled = self._found(batch)
            if compiled is None:
                compiled = self._known[batch] = self._compiled(batch)
                if len(self._known) > MOST_SIZES:
                    self._known.popitem(last=False)
            return compiled.names

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs by name, copied out of OpenVINO's buffers.

        Args:
            feeds: inputs by name; the first dimension is the batch, of all but scalars.
        """
        count = len(feeds[IMAGES_INPUT])
        with self._lock:
            compiled = self._found(count) or self._any or self._larger(count) or self._for_any()
        return compiled.run(feeds, count)

    def _found(self, batch: int) -> _Compiled | None:
        if batch in self._known:
            self._known.move_to_end(batch)
        return self._known.get(batch)

    def _larger(self, batch: int) -> _Compiled | None:
        """What the batch may be filled up for: renting what has not cost its price yet."""
        size = min((size for size in self._known if size > batch), default=None)
        if size is None:
            return None
        compiled = self._known[size]
        self._wasted += compiled.seconds * (size - batch) / size
        return compiled if self._wasted < self._seconds else None

    def _for_any(self) -> _Compiled:
        if self._any is None:
            self._any = self._compiled(None)
        return self._any

    def _compiled(self, batch: int | None) -> _Compiled:
        began = time.perf_counter()
        parts = Parts() if batch is None or self._whole else parts_of(batch, self._cores, self._most)
        make = partial(self._compile_for, batch and batch // parts.number, parts.together)
        compiled = _Compiled(make, batch, parts, self._lanes, self._outputs)
        self._seconds = time.perf_counter() - began
        return compiled
