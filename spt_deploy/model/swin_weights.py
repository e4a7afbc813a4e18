"""Swin weights into our model: what fits is taken, the rest is listed, a wrong file is an error that says which."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_deploy.config import MODEL_NAMES, BackboneConfig, ModelConfig
from spt_deploy.errors import ArtefactError
from spt_deploy.model.checkpoint import check_finite, load_weights_file
from spt_deploy.model.network import SptModel
from spt_deploy.model.swin_keys import NamedWeights, Scheme, rename

TABLE = "relative_position_bias_table"
_EMBEDDING = "backbone.patch_embed.proj.weight"
_CLASSIFIER = "head.fc.weight"


class ShapeMismatch(NamedTuple):
    """A weight that fits by name only."""

    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class FitReport:
    """What became of each weight. What is not taken from the file starts fresh.

    Attributes:
        scheme: whose key names the file has.
        taken: weights of the model that come from the file.
        gates: gates of the model that start fresh, as they must when the file is a Swin.
        missing: other weights of the model that the file lacks.
        other_shape: weights that are there with another shape, and start fresh.
        unexpected: the file's names that have no place in the model.
        resized: relative position tables resized from another window.
    """

    scheme: Scheme
    taken: tuple[str, ...]
    gates: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[ShapeMismatch, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]

    @property
    def has_fresh_head(self) -> bool:
        """Whether any weight of the head starts fresh."""
        names = (*self.missing, *(mismatch.name for mismatch in self.other_shape))
        return any(name.startswith("head.") for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return asdict(self) | {"other_shape": [mismatch._asdict() for mismatch in self.other_shape]}


def read_swin_weights(path: Path) -> NamedWeights:
    """The Swin weights in a ``.pth``, ``.pt`` or ``.safetensors`` file, under our names.

    Raises:
        ArtefactError: when the file cannot be read without running code from it, holds no Swin weights, or one of them
            is no finite number.
    """
    content, _ = load_weights_file(path)
    named = rename(content, str(path))
    check_finite(named.weights, named.where, named.names)
    return named


def class_count(named: NamedWeights) -> int | None:
    """Classes of the classifier in the file; None when it has none."""
    classifier = named.weights.get(_CLASSIFIER)
    return None if classifier is None else int(classifier.shape[0])


def looks_like(named: NamedWeights) -> str | None:
    """The name of the Swin or SPT that these weights belong to; None when it is no variant known here."""
    embed_dim, depths = _architecture(named)
    family = "spt" if any(name.endswith(".gate.weight") for name in named.weights) else "swin"
    for name in MODEL_NAMES:
        variant = BackboneConfig.from_name(name)
        if name.startswith(family) and (variant.embed_dim, variant.depths) == (embed_dim, depths):
            return name
    return None


def fit_swin_weights(named: NamedWeights, config: ModelConfig) -> tuple[dict[str, Tensor], FitReport]:
    """The weights that fit the model, and what became of the others.

    Relative position tables of another window are resized, as Swin does when it is fine-tuned with another window.

    Args:
        named: see ``read_swin_weights``.
        config: of the model that shall hold them.

    Returns:
        Weights by our name, each of the model's shape; some may lack, so load them with ``strict=False``.

    Raises:
        ArtefactError: when the weights are of another architecture; the message says of which.
    """
    _check_architecture(named, config.backbone)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SptModel(config).state_dict().items()}
    fitting: dict[str, Tensor] = {}
    other_shape: list[ShapeMismatch] = []
    resized: list[str] = []
    for name in named.weights.keys() & shapes.keys():
        tensor = named.weights[name]
        if name.endswith(TABLE) and tuple(tensor.shape) != shapes[name]:
            table = _resized_table(tensor, shapes[name])
            if table is not None:
                tensor = table
                resized.append(name)
        if tuple(tensor.shape) == shapes[name]:
            fitting[name] = tensor
        else:
            other_shape.append(ShapeMismatch(name, tuple(tensor.shape), shapes[name]))
    missing = shapes.keys() - named.weights.keys()
    gates = {name for name in missing if ".gate." in name}
    unexpected = [named.names[name] for name in named.weights.keys() - shapes.keys()]
    in_model = list(shapes).index
    report = FitReport(
        scheme=named.scheme,
        taken=tuple(sorted(fitting, key=in_model)),
        gates=tuple(sorted(gates, key=in_model)),
        missing=tuple(sorted(missing - gates, key=in_model)),
        other_shape=tuple(sorted(other_shape)),
        unexpected=tuple(sorted([*unexpected, *named.unknown])),
        resized=tuple(sorted(resized, key=in_model)),
    )
    return fitting, report


def _architecture(named: NamedWeights) -> tuple[int, tuple[int, ...]]:
    """Embedding width and depths that the names and shapes speak of."""
    depths = [0, 0, 0, 0]
    for name in named.weights:
        block = re.match(r"backbone\.stages\.(\d)\.blocks\.(\d+)\.", name)
        if block and int(block[1]) < 4:
            depths[int(block[1])] = max(depths[int(block[1])], int(block[2]) + 1)
    return int(named.weights[_EMBEDDING].shape[0]), tuple(depths)


def _check_architecture(named: NamedWeights, config: BackboneConfig) -> None:
    embed_dim, depths = _architecture(named)
    if (embed_dim, depths) == (config.embed_dim, config.depths):
        return
    size = f"embed_dim {embed_dim}, depths {', '.join(map(str, depths))}"
    like = looks_like(named)
    if like is None:
        known = ", ".join(MODEL_NAMES)
        raise ArtefactError(f"{named.where}: these weights look like no model known here ({size}); known are {known}")
    # Swin weights for an SPT are the usual case: stay in the family that was asked for.
    remedy = f"{config.name.split('_')[0]}_{like.split('_')[1]}"
    raise ArtefactError(
        f"{named.where}: these weights look like {like} ({size}), not {config.name}; "
        f"try --model {remedy if remedy in MODEL_NAMES else like}"
    )


def _resized_table(table: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A ``(2m-1)^2 x heads`` table at the size of another window, bicubic; None when it is no such table.

    Source: ``load_pretrained`` in microsoft/Swin-Transformer, ``utils.py``.
    """
    side, wanted = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    if table.ndim != 2 or side * side != table.shape[0] or side % 2 == 0 or table.shape[1] != shape[1]:
        return None
    grid = table.t().reshape(1, shape[1], side, side)
    return F.interpolate(grid, size=(wanted, wanted), mode="bicubic").reshape(shape[1], -1).t().contiguous()
