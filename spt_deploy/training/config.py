"""What a training run is told: frozen, checked at construction, written beside its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spt_deploy.config import TASKS, BackboneConfig, Task, check_image_size
from spt_deploy.errors import UsageError

# What may differ between a run and its resumption: where things lie, and what they are computed on.
FREE_TO_CHANGE = frozenset({"data", "format", "out", "device", "workers", "compile"})
_PATHS = ("data", "out", "init")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: folder of the data set.
        format: of the data set; None looks at the folder (see `formats.py`).
        out: folder of the run; made if need be.
        task: what is learnt: ``classify``, ``multilabel`` or ``detect``.
        model: name of the variant, ``spt_t`` and the like.
        init: checkpoint to start from; None starts from random weights.
        epochs: passes over the training images.
        imgsz: (height, width) of the model's input in pixels.
        batch: images a forward pass, of each process.
        accumulate: forward passes a step, whose gradients are added up: a larger batch in the same memory.
        lr: highest learning rate, reached after the warm-up.
        gate_lr_scale: the gates learn this many times faster. They start at a bias of +4 and must come below the
            threshold's -4.6 on background: with the learning rate of the other weights that takes longer than a small
            fine-tune lasts.
        flip: share of the training images that are mirrored, left for right, in [0, 1]; 0 where a mirror image is
            something else, as with digits and text.
        mosaic: share of the training images that are put together with three others, in [0, 1]; for ``detect``.
        alpha: weight of the select loss; 0 leaves it out.
        threshold: of the sigmoid score, in (0, 1); a token above it is kept.
        weight_decay: AdamW's, of weight matrices; norms, biases, position tables and gates have none.
        warmup: share of all steps in which the learning rate rises, in [0, 1).
        clip: largest norm of the gradient.
        label_smoothing: share of the label that is spread over all classes, in [0, 1).
        drop_path: rate of stochastic depth; None takes the variant's own.
        ema: decay of the running average of the weights, in [0, 1); 0 keeps none. The average is what is evaluated
            and what best.pt holds.
        layer_decay: learning rate of a stage over that of the stage after it, in (0, 1]; the head has the full one.
        freeze: how many stages, from the first, keep their weights; 0 to 4. Gates learn in frozen stages too.
        select_from_labels: the select label takes the place of the selection (the paper's figure 4).
        compile: put MLPs and patch mergings through torch.compile.
        seed: of everything random; on a CPU the same seed gives the same run.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: processes that read images; None chooses by the device.
        max_broken: share of the images that may be unreadable or have broken annotations before the run stops, in
            [0, 1).

    Raises:
        UsageError: when a value is out of range.
    """

    data: Path
    out: Path
    format: str | None = None
    task: Task = "classify"
    model: str = "spt_t"
    init: Path | None = None
    epochs: int = 50
    imgsz: tuple[int, int] = (224, 224)
    batch: int = 32
    accumulate: int = 1
    lr: float = 5e-4
    gate_lr_scale: float = 10.0
    flip: float = 0.5
    mosaic: float = 0.0
    alpha: float = 0.01
    threshold: float = 0.01
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 5.0
    label_smoothing: float = 0.1
    drop_path: float | None = None
    ema: float = 0.999
    layer_decay: float = 1.0
    freeze: int = 0
    select_from_labels: bool = False
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    max_broken: float = 0.05

    def __post_init__(self) -> None:
        for name in _PATHS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        try:
            height, width = self.imgsz
            object.__setattr__(self, "imgsz", (int(height), int(width)))  # JSON gives a list
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"imgsz is {self.imgsz!r}; expected (height, width) in pixels, such as (224, 224)"
            ) from error
        check_image_size(self.imgsz)
        if self.task not in TASKS:
            raise UsageError(f"task is {self.task!r}; known are {', '.join(TASKS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}; known are auto, cpu, cuda")
        for name in ("epochs", "batch", "accumulate"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "a whole number from 1")
        for name in ("lr", "gate_lr_scale", "clip"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "a number above 0")
        for name in ("alpha", "weight_decay"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "a number from 0")
        for name in ("warmup", "label_smoothing", "max_broken", "ema"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        _require("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "a number above 0 and at most 1")
        _require("freeze", self.freeze, self.freeze in range(5), "a number of stages from 0 to 4")
        _require("seed", self.seed, 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1")
        _require("workers", self.workers, self.workers is None or self.workers >= 0, "a whole number from 0")
        _require("flip", self.flip, 0 <= self.flip <= 1, "a share of the images from 0 to 1")
        _require("mosaic", self.mosaic, 0 <= self.mosaic <= 1, "a share of the images from 0 to 1")
        if self.mosaic and self.task != "detect":
            raise UsageError(
                f"mosaic is {self.mosaic} and the task {self.task}; only detect learns from mosaics, leave it out"
            )
        backbone = self.backbone()  # the model's name, threshold and drop path check themselves
        if self.select_from_labels and not backbone.spa_stages:
            raise UsageError(
                f"--select-from-labels with {self.model}, which selects nothing; choose a model named spt_..."
            )

    def backbone(self) -> BackboneConfig:
        """The configuration of the backbone that is trained."""
        changes: dict[str, Any] = {"threshold": self.threshold}
        if self.drop_path is not None:
            changes["drop_path"] = self.drop_path
        return BackboneConfig.from_name(self.model, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON and for checkpoints."""
        values = asdict(self) | {"imgsz": list(self.imgsz)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of ``to_dict``.

        Raises:
            UsageError: when a field is unknown, missing or out of range.
        """
        try:
            return cls(**values)
        except (TypeError, IndexError, ValueError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise UsageError(f"not a training configuration: {error}; known fields are {known}") from error

    def differences(self, begun: TrainConfig) -> list[str]:
        """What differs from a run that was ``begun`` and must not in its resumption: ``lr is 0.1, was 0.2``."""
        now, before = self.to_dict(), begun.to_dict()
        return [f"{k} is {now[k]}, was {before[k]}" for k in now if now[k] != before[k] and k not in FREE_TO_CHANGE]


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:  # NaN holds nowhere
        raise UsageError(f"{name} is {value}; expected {expected}")
