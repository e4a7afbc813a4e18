"""The contract of every runtime: open an artefact, turn a batch of images into named arrays, close.

A runner is a context manager. ``infer`` checks its input here, once for all runtimes; a subclass writes
``_open``, ``_run`` and ``_close`` only.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from spt_deploy.config import check_threshold, mask_output
from spt_deploy.errors import InputError
from spt_deploy.facts import THRESHOLD_INPUT, ModelFacts
from spt_deploy.image_input import Images

Arrays = dict[str, npt.NDArray[np.generic]]
IMAGES_INPUT = "images"  # of an exported graph


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Runner(ABC):
    """One artefact in one runtime, open within a ``with`` statement; such statements nest, the outermost closes it.

    Attributes:
        runtime: the runtime's name on the command line.
        path: of the artefact.
        device: what it runs on, ``cpu`` or ``cuda``.
        precision: of the artefact, ``fp32`` and the like.
        facts: what the artefact says of itself; known before the runner is entered. Where a threshold was given, it is
            the configuration's from here on.
        computes_in: the precision that a runtime was asked to compute in, where it has several; None is its own choice.
        lanes: calls of ``infer`` that may run at the same time, from as many threads, each on its share of the cores.

    Raises:
        InputError: when a threshold is given and the artefact takes none.
        UsageError: when it is not in (0, 1).
    """

    runtime: ClassVar[str]
    computes_in: str | None = None
    lanes: int = 1

    def __init__(
        self,
        path: Path,
        facts: ModelFacts,
        device: str = "cpu",
        precision: str = "fp32",
        threshold: float | None = None,
    ) -> None:
        self.path = path
        self.facts = facts
        if threshold is not None:
            self.check_threshold(threshold)
            backbone = replace(facts.model.backbone, threshold=threshold)
            self.facts = replace(facts, model=replace(facts.model, backbone=backbone))
        self.device = device
        self.precision = precision
        self._entered = 0  # times more than it was left

    def __enter__(self) -> Self:
        if not self._is_open:
            self._open()
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered == 1:
            self._close()
        self._entered = max(0, self._entered - 1)

    @property
    def _is_open(self) -> bool:
        return self._entered > 0

    @property
    def name(self) -> str:
        """Runtime, device and precision, for tables: ``onnxruntime cpu fp32``."""
        return f"{self.runtime} {self.device} {self.precision}"

    @property
    def max_batch(self) -> int | None:
        """The largest batch that ``infer`` takes; None where it takes any."""
        return None

    def expect(self, batch: int | None) -> None:  # noqa: B027 - most runtimes take any batch as it comes
        """Get ready for batches of this many images, or of all sizes if None; better before the runner is entered.

        Others work too. The first of them may take seconds longer, where a runtime compiles for it.
        """

    @property
    def takes_threshold(self) -> bool:
        """Whether ``infer`` takes another threshold than the model's own."""
        return self.facts.runtime_threshold

    def check_threshold(self, threshold: float) -> None:
        """Whether ``infer`` would take it.

        Raises:
            InputError: when the artefact takes no threshold at run time.
            UsageError: when it is not in (0, 1).
        """
        check_threshold(threshold)
        if self.takes_threshold:
            return
        if not self.facts.model.backbone.selects_by_threshold:
            raise InputError(
                f"{self.path.name} selects no tokens by a threshold, so that {threshold:g} cannot be given; "
                "leave it out"
            )
        raise InputError(
            f"{self.path.name} takes no threshold at run time, its own is {self.facts.model.backbone.threshold:g} for "
            "good; export it again with --runtime-threshold"
        )

    def infer(self, images: Images, threshold: float | None = None) -> Arrays:
        """Run the model on a batch.

        Args:
            images: what ``facts.image_input`` says, B >= 1: B x 3 x H x W float32, RGB, normalised; or, of a file that
                was exported with ``--uint8-input``, B x H x W x 3 uint8, RGB. H and W are the preprocessing's.
            threshold: of the score, in (0, 1), above which SPA blocks keep a token: the higher, the fewer and the
                faster. None is the model's own; see ``takes_threshold``.

        Returns:
            The outputs by name (DESIGN section 3): ``logits`` B x classes float32, or ``boxes`` B x K x 4 float32
            (xyxy, pixels of the input), ``scores`` B x K float32 and ``labels`` B x K int64; and, of a model with
            SPA blocks, ``select_ratio`` B x blocks float32 and ``selection`` B x H/16 x W/16 float32. Where
            ``with_masks`` said so, ``kept_3.1`` and so on, B x h x w bool.

        Raises:
            InputError: when the runner is not open, ``images`` is not what the model takes, or it takes no threshold.
            UsageError: when the threshold is not in (0, 1).
        """
        if not self._is_open:
            raise InputError(f"the {self.runtime} runner of {self.path.name} is not open; use it in a with statement")
        self.facts.image_input.check(images, self.path.name)
        if threshold is not None:
            self.check_threshold(threshold)
        return self._run(images if images.flags.c_contiguous else images.copy(), threshold)

    def with_masks(self) -> bool:
        """Have ``infer`` return from now on what each SPA block kept; whether it will.

        A file returns these masks if it was exported with ``--selection all``, a checkpoint whenever it is asked to.
        The runner must be open.
        """
        blocks = self.facts.model.backbone.spa_blocks
        return bool(blocks) and {mask_output(block) for block in blocks} <= set(self._output_names())

    @property
    def lacks_selection(self) -> bool:
        """Whether ``infer`` is known to return no selection, as of a file exported without; it must be open."""
        names = self._output_names()
        return bool(names) and "selection" not in names

    def _output_names(self) -> Sequence[str]:
        """What the open artefact returns; empty where that is not known."""
        return ()

    @abstractmethod
    def _open(self) -> None:
        """Load the artefact and take what it needs of the device."""

    @abstractmethod
    def _run(self, images: Images, threshold: float | None) -> Arrays:
        """The inner step: ``images`` is checked and contiguous, and so is a threshold that is not the model's own."""

    @abstractmethod
    def _close(self) -> None:
        """Give back what ``_open`` took."""


def graph_inputs(facts: ModelFacts, images: Images, threshold: float | None = None) -> Arrays:
    """The inputs of an exported graph by name.

    Args:
        facts: of the file.
        images: as for ``Runner.infer``.
        threshold: in (0, 1), where the graph has that input; None is the model's own.
    """
    feeds: Arrays = {IMAGES_INPUT: images}
    if facts.runtime_threshold:
        value = facts.model.backbone.threshold if threshold is None else threshold
        feeds[THRESHOLD_INPUT] = np.asarray(value, dtype=np.float32)
    return feeds
