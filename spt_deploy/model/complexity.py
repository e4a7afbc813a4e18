"""Multiply-accumulates and parameters of a model, part by part, from its configuration and the tokens it keeps.

Matrix products and convolutions count, as executed: windows and containers with their padding, projections of an SPA
block on its kept tokens only, or on all of an image's slots where packing is static. Norms, softmax, activations and
additions have parameters but no MACs here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import UsageError
from spt_deploy.model.shapes import DETECT_STAGES, PATCH, TOWER_DEPTH, container_length, stage_sizes

# In the order in which tables show them. The relative position table counts as attention, LayerNorms before attention
# and MLP as norm; those of patch embedding, merging and head belong to these.
PARTS = ("patch embedding", "merge", "gate", "qkv", "attention", "projection", "MLP", "norm", "head")


class Component(NamedTuple):
    """One part of the model at one place.

    Attributes:
        place: ``stage 1`` to ``stage 4``, ``patch embedding`` or ``head``.
        part: one of PARTS.
        macs: multiply-accumulates for the whole batch.
        parameters: numbers that training changes.
    """

    place: str
    part: str
    macs: int
    parameters: int


class Cost(NamedTuple):
    """A sum over components."""

    macs: int
    parameters: int


@dataclass(frozen=True)
class Complexity:
    """What a forward pass costs."""

    components: tuple[Component, ...]

    @property
    def total(self) -> Cost:
        """Of the whole model."""
        return self.of()

    def of(self, place: str | None = None, part: str | None = None) -> Cost:
        """Of one place, one part, both, or everything."""
        chosen = [c for c in self.components if place in (None, c.place) and part in (None, c.part)]
        return Cost(sum(c.macs for c in chosen), sum(c.parameters for c in chosen))

    @property
    def places(self) -> tuple[str, ...]:
        """All places, in the order of the forward pass."""
        return tuple(dict.fromkeys(c.place for c in self.components))


def kept_tokens(
    config: BackboneConfig, image_size: tuple[int, int], select_ratio: float | Sequence[float], batch: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Tokens that each SPA block keeps of each image, for a select ratio of all blocks or one for each.

    Raises:
        UsageError: when a ratio is not between 0 and 1, or there are not as many ratios as SPA blocks.
    """
    blocks = config.spa_blocks
    ratios = [select_ratio] * len(blocks) if isinstance(select_ratio, int | float) else list(select_ratio)
    if len(ratios) != len(blocks):
        raise UsageError(f"{len(ratios)} select ratios for {len(blocks)} SPA blocks; give one, or one for each")
    for ratio in ratios:
        if not 0 <= ratio <= 1:
            raise UsageError(f"select ratio is {ratio}; expected a number from 0 to 1")
    sizes = stage_sizes(image_size)
    tokens = [height * width for height, width in (sizes[int(name[0]) - 1] for name in blocks)]
    return tuple((round(ratio * count),) * batch for ratio, count in zip(ratios, tokens, strict=True))


def complexity(
    config: ModelConfig, image_size: tuple[int, int], kept: Sequence[Sequence[int]] = (), batch: int = 1
) -> Complexity:
    """Count a forward pass.

    Args:
        config: of the model.
        image_size: (height, width) in pixels.
        kept: for each SPA block in order, the tokens kept of each image of the batch; see ``kept_tokens``.
        batch: images.

    Raises:
        UsageError: when ``kept`` does not fit the blocks or the batch.
    """
    backbone = config.backbone
    if len(kept) != len(backbone.spa_blocks) or any(len(images) != batch for images in kept):
        raise UsageError(
            f"kept tokens of {len(kept)} blocks; expected {len(backbone.spa_blocks)} blocks with {batch} images each"
        )
    sizes = stage_sizes(image_size)
    components = [_patch_embedding(backbone.embed_dim, batch * sizes[0][0] * sizes[0][1])]
    remaining = iter(kept)
    for stage in range(1, 5):
        components += _stage(backbone, stage, sizes, batch, remaining)
    head = _detect_head(config, sizes, batch) if config.task == "detect" else _label_head(config, batch)
    return Complexity((*components, head))


def _patch_embedding(width: int, tokens: int) -> Component:
    weights = 3 * PATCH * PATCH * width
    return Component("patch embedding", "patch embedding", tokens * weights, weights + width + 2 * width)


def _stage(
    config: BackboneConfig, stage: int, sizes: Sequence[tuple[int, int]], batch: int, kept: Iterator[Sequence[int]]
) -> Iterator[Component]:
    place, width, depth = f"stage {stage}", config.stage_width(stage), config.depths[stage - 1]
    height, columns = sizes[stage - 1]
    tokens = batch * height * columns
    if stage > 1:
        weights = 4 * config.stage_width(stage - 1) * width
        yield Component(place, "merge", tokens * weights, weights + 8 * config.stage_width(stage - 1))
    if stage in config.spa_stages:
        selections = [next(kept) for _ in range(depth)]
        projected = sum(sum(images) for images in selections)
        length = container_length(config.window, height * columns, config.packing)
        runs = [[sum(images)] if config.packing == "batch" else images for images in selections]
        groups = sum(-(-count // length) for images in runs for count in images)
        if config.packing == "static":  # every slot is computed, whatever lies in it
            projected = batch * depth * config.static_slots(height * columns)
            groups = projected // length
    else:
        windows = batch * -(-height // config.window) * -(-columns // config.window)
        groups = windows * depth
        length = config.window**2
        projected = groups * length
    hidden = int(width * config.mlp_ratio)
    table = (2 * config.window - 1) ** 2 * config.heads[stage - 1]
    gates = (stage in config.spa_stages) * depth  # and one on the output of the stage before the first SPA stage
    gates += stage + 1 == min(config.spa_stages, default=0)
    if gates:
        yield Component(place, "gate", gates * tokens * width, gates * (width + 1))
    yield Component(place, "qkv", projected * 3 * width**2, depth * 3 * (width**2 + width))
    # Query times key and weights times value, each L x L x C in every window or container.
    yield Component(place, "attention", groups * 2 * length**2 * width, depth * table)
    yield Component(place, "projection", projected * width**2, depth * (width**2 + width))
    mlp = 2 * width * hidden
    yield Component(place, "MLP", depth * tokens * mlp, depth * (mlp + hidden + width))
    yield Component(place, "norm", 0, depth * 4 * width)


def _label_head(config: ModelConfig, batch: int) -> Component:
    width, classes = config.backbone.stage_width(4), len(config.class_names)
    return Component("head", "head", batch * width * classes, 2 * width + (width + 1) * classes)


def _detect_head(config: ModelConfig, sizes: Sequence[tuple[int, int]], batch: int) -> Component:
    width, outputs = config.head_width, len(config.class_names) + 4
    towers = 2 * TOWER_DEPTH * 9 * width**2
    last = 9 * width * outputs
    macs = 0
    parameters = towers + 2 * TOWER_DEPTH * 2 * width + last + outputs + len(DETECT_STAGES)
    for stage in DETECT_STAGES:
        points = batch * sizes[stage - 1][0] * sizes[stage - 1][1]
        channels = config.backbone.stage_width(stage)
        smooth = 9 * width**2
        macs += points * (channels * width + smooth + towers + last)
        parameters += 2 * channels + (channels + 1) * width + smooth + width
    return Component("head", "head", macs, parameters)
