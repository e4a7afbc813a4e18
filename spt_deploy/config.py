"""What an SPT is made of: frozen configurations that validate themselves, and the named variants.

Stages are numbered 1 to 4, as in the paper: ``spa_stages=(3, 4)`` is SPT, ``spa_stages=()`` is Swin.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from spt_deploy.errors import UsageError

Task = Literal["classify", "multilabel", "detect"]
Packing = Literal["batch", "per-image", "static"]
Selector = Literal["threshold", "topk"]

TASKS: tuple[Task, ...] = get_args(Task)
PACKINGS: tuple[Packing, ...] = get_args(Packing)
DYNAMIC_PACKINGS: tuple[Packing, ...] = ("batch", "per-image")  # of lists as long as the selection
SELECTORS: tuple[Selector, ...] = get_args(Selector)

HEAD_DIM = 32  # of every Swin and every SPT
MIN_IMAGE_SIZE = 32  # one token in stage 4
_NAMED = 5  # of classes, in a sentence about them

# name -> embed_dim (C), depths, heads, drop path rate (Swin's own, per variant)
_VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], float]] = {
    "micro": (32, (2, 2, 2, 2), (1, 2, 4, 8), 0.0),
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
}
MODEL_NAMES = tuple(f"{family}_{size}" for family in ("spt", "swin") for size in _VARIANTS)


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} is {value!r}; known are {', '.join(known)}")


@dataclass(frozen=True)
class BackboneConfig:
    """A Swin-like backbone whose ``spa_stages`` attend to selected tokens only.

    Attributes:
        name: the variant, ``spt_t`` and the like; only a label.
        embed_dim: C, the width of stage 1; stage i has ``C * 2**(i - 1)``.
        depths: blocks of each of the four stages.
        heads: attention heads of each stage; the head dimension is always 32.
        spa_stages: stages (1 to 4) made of SPA blocks.
        window: M; windows and containers hold M*M tokens.
        mlp_ratio: hidden width of the MLP over the block's width.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0 in the first.
        selector: ``threshold`` keeps tokens with sigmoid(s) > ``threshold``; ``topk`` keeps the
            ``keep_ratio`` best of every image (uniform selection, SparseViT).
        threshold: of the sigmoid score, in (0, 1); the paper's 0.01.
        keep_ratio: share of tokens that ``topk`` keeps, in (0, 1].
        packing: ``batch`` fills containers across images, ``per-image`` starts each image in a new one, ``static``
            gives each image a fixed number of them.
        capacity: share of an image's tokens that ``static`` packing has room for, in (0, 1].
        gate_bias: initial bias of every gate; +4 starts near Swin (sigmoid(4) = 0.982).

    Raises:
        UsageError: when a value is out of range or the tuples do not fit each other.
    """

    name: str
    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    spa_stages: tuple[int, ...] = (3, 4)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    selector: Selector = "threshold"
    threshold: float = 0.01
    keep_ratio: float = 0.5
    packing: Packing = "batch"
    gate_bias: float = 4.0
    capacity: float = 0.5

    def __post_init__(self) -> None:
        for name in ("depths", "heads", "spa_stages"):  # JSON gives lists
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        if len(self.depths) != 4 or len(self.heads) != 4 or min(self.depths) < 1:
            raise UsageError(f"depths {self.depths} and heads {self.heads} must each be four positive numbers")
        for stage, heads in enumerate(self.heads):
            if self.stage_width(stage + 1) != heads * HEAD_DIM:
                raise UsageError(
                    f"stage {stage + 1} has width {self.stage_width(stage + 1)} and {heads} heads; "
                    f"the head dimension must be {HEAD_DIM}"
                )
        if not set(self.spa_stages) <= {1, 2, 3, 4} or list(self.spa_stages) != sorted(set(self.spa_stages)):
            raise UsageError(f"spa_stages is {self.spa_stages}; expected ascending stage numbers from 1 to 4")
        if not isinstance(self.window, int) or self.window < 1:
            raise UsageError(f"window is {self.window}; expected a positive whole number")
        if not 0.0 < self.mlp_ratio < math.inf:
            raise UsageError(f"mlp_ratio is {self.mlp_ratio}; expected a positive number")
        if not math.isfinite(self.gate_bias):
            raise UsageError(f"gate_bias is {self.gate_bias}; expected a number")
        check_threshold(self.threshold)
        if not 0.0 < self.keep_ratio <= 1.0:
            raise UsageError(f"keep_ratio is {self.keep_ratio}; expected a number above 0 and at most 1")
        if not 0.0 < self.capacity <= 1.0:
            raise UsageError(f"capacity is {self.capacity}; expected a share of the tokens, above 0 and at most 1")
        if not 0.0 <= self.drop_path < 1.0:
            raise UsageError(f"drop_path is {self.drop_path}; expected a number from 0 to below 1")
        _one_of("selector", self.selector, SELECTORS)
        _one_of("packing", self.packing, PACKINGS)

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> BackboneConfig:
        """The variant called ``name``, with ``changes`` to its fields.

        Raises:
            UsageError: when no variant has that name.
        """
        _one_of("model", name, MODEL_NAMES)
        family, size = name.split("_")
        embed_dim, depths, heads, drop_path = _VARIANTS[size]
        values: dict[str, Any] = {
            "embed_dim": embed_dim,
            "depths": depths,
            "heads": heads,
            "drop_path": drop_path,
            "spa_stages": (3, 4) if family == "spt" else (),
        }
        return cls(name=name, **(values | changes))

    def stage_width(self, stage: int) -> int:
        """Channels of stage 1 to 4."""
        return self.embed_dim << (stage - 1)

    def best_count(self, tokens: int) -> int:
        """How many of an image's tokens ``topk`` keeps."""
        # Rounded first: 0.07 * 100 is a little more than 7 in floating point, and 7 are meant.
        return max(1, math.ceil(round(self.keep_ratio * tokens, 6)))

    def static_slots(self, tokens: int) -> int:
        """Slots of an image of so many tokens under ``static`` packing: whole containers, as each is computed."""
        length = self.window * self.window
        # Rounded first: 0.07 * 100 is a little more than 7 in floating point, and 7 are meant.
        return max(1, math.ceil(round(self.room * tokens, 6) / length)) * length

    @property
    def room(self) -> float:
        """Share of an image's tokens that ``static`` packing has room for; ``topk`` has room for what it keeps."""
        return max(self.capacity, self.keep_ratio) if self.selector == "topk" else self.capacity

    @property
    def selects_by_threshold(self) -> bool:
        """Whether there are SPA blocks that compare their scores with ``threshold``."""
        return bool(self.spa_stages) and self.selector == "threshold"

    @property
    def spa_blocks(self) -> tuple[str, ...]:
        """Names of the SPA blocks in order, ``stage.block`` counted from 1: ``("3.1", "3.2", "4.1", "4.2")``."""
        return tuple(f"{s}.{b + 1}" for s in self.spa_stages for b in range(self.depths[s - 1]))


@dataclass(frozen=True)
class ModelConfig:
    """A backbone with the head of one task.

    Attributes:
        backbone: see BackboneConfig.
        task: ``classify`` (softmax), ``multilabel`` (sigmoid) or ``detect``.
        class_names: one name a class, in the order of the logits.
        head_width: channels of the detection head (FPN and towers).
        top_k: K, boxes an image that the detection head returns, fewer where an image has fewer candidates.
    """

    backbone: BackboneConfig
    task: Task
    class_names: tuple[str, ...]
    head_width: int = 96
    top_k: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(str(c) for c in self.class_names))
        _one_of("task", self.task, TASKS)
        if not self.class_names:
            raise UsageError("class_names is empty; a model needs at least one class")
        if len(set(self.class_names)) != len(self.class_names):
            repeated = [name for name, times in Counter(self.class_names).items() if times > 1]
            more = f" and {len(repeated) - _NAMED} more" if len(repeated) > _NAMED else ""
            raise UsageError(f"class_names has repeated names: {', '.join(repeated[:_NAMED])}{more}")
        if self.head_width < 8 or self.head_width % 8:
            raise UsageError(f"head_width is {self.head_width}; expected a positive multiple of 8")
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; expected a positive whole number")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON and for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``.

        Raises:
            UsageError: when a field is unknown, missing or out of range.
        """
        try:
            backbone = BackboneConfig(**values["backbone"])
            rest = {k: v for k, v in values.items() if k != "backbone"}
            return cls(backbone=backbone, **rest)
        except (TypeError, KeyError, ValueError, OverflowError) as error:  # int() of an infinity
            known = [f.name for f in fields(BackboneConfig)] + [f.name for f in fields(cls)]
            raise UsageError(f"not a model configuration: {error}; known fields are {', '.join(known)}") from error


def mask_output(block: str) -> str:
    """The output that holds what an SPA block kept, B x h x w bool: ``kept_3.5`` of block 3.5."""
    return f"kept_{block}"


def check_threshold(threshold: float) -> float:
    """``threshold`` of the sigmoid score if a model can take it: it computes in float32, where it must have a logit.

    Raises:
        UsageError: when it is not in (0, 1), or nearer to an end than float32 can say.
    """
    nearest = ctypes.c_float(threshold).value
    if not 0.0 < nearest < 1.0:
        said = f", in float32 {nearest:g}" if 0.0 < threshold < 1.0 else ""
        raise UsageError(f"threshold is {threshold}{said}; expected a number between 0 and 1, both excluded")
    return threshold


def check_image_size(size: tuple[int, int]) -> tuple[int, int]:
    """``size`` (height, width in pixels) if a model can take it.

    Raises:
        UsageError: when a side is below 32 pixels.
    """
    if min(size) < MIN_IMAGE_SIZE:
        raise UsageError(
            f"image size {size[0]}x{size[1]} is too small; height and width must be at least {MIN_IMAGE_SIZE} pixels"
        )
    return size


def parse_image_size(text: str) -> tuple[int, int]:
    """``"224"`` or ``"800x1280"`` (height x width) as two numbers.

    Raises:
        UsageError: when the text is no size, or a side is below 32 pixels.
    """
    parts = [part.strip() for part in text.lower().split("x")]  # int() knows fewer kinds of space
    if len(parts) > 2 or not all(p.isdecimal() for p in parts):
        raise UsageError(f"image size {text!r} is no size; write 224 or 800x1280 (height x width)")
    sides = [int(p) for p in parts]
    return check_image_size((sides[0], sides[-1]))


__all__ = [
    "DYNAMIC_PACKINGS",
    "HEAD_DIM",
    "MIN_IMAGE_SIZE",
    "MODEL_NAMES",
    "PACKINGS",
    "SELECTORS",
    "TASKS",
    "BackboneConfig",
    "ModelConfig",
    "Packing",
    "Selector",
    "Task",
    "check_image_size",
    "check_threshold",
    "mask_output",
    "parse_image_size",
]
