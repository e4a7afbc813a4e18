"""A checkpoint in PyTorch: the reference that every other runtime is held against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch

from spt_deploy.config import Packing, mask_output
from spt_deploy.errors import RuntimeMissingError
from spt_deploy.image_input import Images
from spt_deploy.model.checkpoint import Checkpoint, load_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.runtimes.base import Arrays, Runner


def deployed_checkpoint(
    path: Path,
    packing: Packing = "per-image",
    image_size: tuple[int, int] | None = None,
    threshold: float | None = None,
    capacity: float | None = None,
) -> Checkpoint:
    """A checkpoint as it is deployed.

    Args:
        path: of the checkpoint.
        packing: takes the place of the one it was trained with; ``per-image`` makes an image's answer its own.
        image_size: (height, width) in pixels, takes the place of the one it was trained at; None keeps that.
        threshold: of the sigmoid score, takes the place of the one it was trained with; None keeps that.
        capacity: of ``static`` packing, see `config.BackboneConfig`; None keeps the checkpoint's.

    Raises:
        ArtefactError: see ``load_checkpoint``.
        UsageError: when the threshold or the capacity is out of range.
    """
    checkpoint = load_checkpoint(path)
    facts = checkpoint.facts
    backbone = facts.model.backbone
    backbone = replace(
        backbone,
        packing=packing,
        threshold=backbone.threshold if threshold is None else threshold,
        capacity=backbone.capacity if capacity is None else capacity,
    )
    preprocessing = replace(facts.preprocessing, size=image_size or facts.preprocessing.size)
    facts = replace(facts, model=replace(facts.model, backbone=backbone), preprocessing=preprocessing)
    return replace(checkpoint, facts=facts)


def torch_device(wanted: str) -> torch.device:
    """``auto`` takes CUDA where it is.

    Raises:
        RuntimeMissingError: when ``cuda`` is asked for and not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissingError("PyTorch sees no CUDA device; use --device cpu, or install a CUDA build of torch")
    return device


class TorchRunner(Runner):
    """Runs a checkpoint with PyTorch in float32; arguments as for ``deployed_checkpoint``."""

    runtime: ClassVar[str] = "torch"

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        packing: Packing = "per-image",
        image_size: tuple[int, int] | None = None,
        threshold: float | None = None,
        capacity: float | None = None,
    ) -> None:
        self._device = torch_device(device)
        self._checkpoint = deployed_checkpoint(path, packing, image_size, threshold, capacity)
        self._model: SptModel | None = None
        self._masks = False
        super().__init__(path, self._checkpoint.facts, self._device.type)

    @property
    def model(self) -> SptModel:
        """The open model, in evaluation mode on the runner's device."""
        assert self._model is not None
        return self._model

    def _open(self) -> None:
        if self._device.type == "cuda" and find_spec("triton") is not None:
            import spt_plugins  # without Triton CUDA runs the operators as written in PyTorch

            spt_plugins.register_torch_cuda()
        self._model = self._checkpoint.build().to(self._device)

    @property
    def takes_threshold(self) -> bool:
        """PyTorch runs any model at any threshold that selects by one."""
        return self.facts.model.backbone.selects_by_threshold

    def _run(self, images: Images, threshold: float | None) -> Arrays:
        logit = None if threshold is None else torch.logit(torch.tensor(threshold, device=self._device))
        with torch.inference_mode(), _float32_convolutions():
            output = self.model(torch.from_numpy(images).to(self._device), threshold=logit)
            named = dict(output.named())
            if self._masks:
                blocks = self.facts.model.backbone.spa_blocks
                named |= {mask_output(block): kept for block, kept in zip(blocks, output.features.kept, strict=True)}
            return {name: value.cpu().numpy() for name, value in named.items()}

    def with_masks(self) -> bool:
        self._masks = bool(self.facts.model.backbone.spa_blocks)
        return self._masks

    def _close(self) -> None:
        self._model = None


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """All 23 bits of mantissa: PyTorch's default for convolutions on a GPU is TF32, which has ten, and parity fails."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
