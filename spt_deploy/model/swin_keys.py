"""Names of Swin weights in the files of other projects, turned into ours.

| project | as saved by |
|---|---|
| official | microsoft/Swin-Transformer: nested under ``model``, downsampling at the END of stages 0 to 2 |
| timm | downsampling at the START of stages 1 to 3, as ours; the classifier is ``head.fc`` |
| hugging face | names of its own, query, key and value apart, downsampling at the end; two generations of block names |
| spt-deploy | ours |

A prefix (``module.``, ``backbone.``, ``swin.`` ...) before the patch embedding is taken off every key that has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spt_deploy.errors import ArtefactError

Scheme = Literal["official", "timm", "hugging face", "spt-deploy"]

# Every Swin has this one, whatever stands before it.
_ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
_NESTED_UNDER = ("model", "state_dict", "weights", "model_state_dict", "module", "model_ema", "state_dict_ema")
_BUFFERS = ("relative_position_index", "attn_mask")  # computed from sizes, here and there
_V2_ONLY = ("cpb_mlp", "continuous_position_bias_mlp", "logit_scale")

_MODULES = {
    "patch_embed": "backbone.patch_embed",
    "embeddings.patch_embeddings.projection": "backbone.patch_embed.proj",
    "embeddings.norm": "backbone.patch_embed.norm",
    "gate": "backbone.gate",
    "norm": "head.norm",
    "layernorm": "head.norm",
    "head.norm": "head.norm",
    "head.fc": "head.fc",
    "classifier": "head.fc",
    # Detection: one LayerNorm a stage. Stage 1 has none here, for its map is not used.
    **{f"norm{i}": f"head.norms.{i - 1}" for i in (1, 2, 3)},
    **{f"hidden_states_norms.stage{i + 1}": f"head.norms.{i - 1}" for i in (1, 2, 3)},
}
_IN_BLOCK = {
    **{name: name for name in ("norm1", "attn.qkv", "attn.proj", "gate", "norm2", "mlp.fc1", "mlp.fc2")},
    "attn.relative_position_bias_table": "attn.relative_position_bias_table",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.self.query": "attn.query",
    "attention.self.key": "attn.key",
    "attention.self.value": "attn.value",
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_BLOCK = re.compile(r"(?:encoder\.)?(?:layers|stages)\.(\d)\.blocks\.(\d+)\.(.+)")
_DOWNSAMPLE = re.compile(r"(?:encoder\.)?(?:layers|stages)\.(\d)\.downsample\.((?:norm|reduction)\..+)")


@dataclass(frozen=True)
class NamedWeights:
    """Swin weights under our names.

    Attributes:
        where: the file they came from, for messages.
        scheme: whose names the file had.
        weights: by our name, float32 on the CPU; shapes as in the file, query, key and value joined.
        names: the file's name of each of them.
        unknown: the file's names that mean nothing here, without the buffers that Swin computes.
    """

    where: str
    scheme: Scheme
    weights: dict[str, Tensor]
    names: dict[str, str]
    unknown: tuple[str, ...]


def rename(content: Mapping[str, Any], where: str) -> NamedWeights:
    """Find Swin weights in what a file holds, and give them our names.

    Args:
        content: tensors by name, or a dict that nests them as training code does.
        where: names the file in errors.

    Raises:
        ArtefactError: when there are no tensors, they are not those of a Swin, or one holds no plain numbers.
    """
    state = _state_dict(content)
    if not state:
        raise ArtefactError(
            f"{where} holds no weights; expected tensors by name, plain or under 'model' or 'state_dict'"
        )
    if any(part in key for key in state for part in _V2_ONLY):
        raise ArtefactError(f"{where} holds Swin V2 weights, whose attention is another one; give those of a Swin V1")
    anchors = _anchors(state)
    if not anchors:
        raise ArtefactError(
            f"{where} holds no Swin weights with official, timm or Hugging Face names (none ends in "
            f"{' or '.join(_ANCHORS)}); its first are {', '.join(list(state)[:3])}"
        )
    key, anchor = min(anchors, key=lambda pair: len(pair[0]))
    stripped = _strip(state, key.removesuffix(anchor))
    scheme = _scheme(stripped, anchor)
    weights: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown: list[str] = []
    for name, original in stripped:
        if name.rsplit(".", 1)[-1] in _BUFFERS:
            continue
        ours = _our_name(name, scheme)
        if ours is None or ours in weights:
            unknown.append(original)
        else:
            weights[ours] = _float32(state[original], original, where)
            names[ours] = original
    unknown += _join_qkv(weights, names)
    return NamedWeights(where, scheme, weights, names, tuple(unknown))


def _state_dict(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors by name that a Swin is among; training code keeps others, such as its best accuracy, beside them."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key in _NESTED_UNDER:
        nested = content.get(key)
        if isinstance(nested, Mapping) and not _anchors(tensors):
            tensors = _state_dict(nested) or tensors
    return tensors


def _anchors(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The patch embeddings: each one's key, and what it ends in."""
    return [(key, anchor) for key in state for anchor in _ANCHORS if key == anchor or key.endswith("." + anchor)]


def _float32(tensor: Tensor, name: str, where: str) -> Tensor:
    is_scaled = tensor.element_size() == 1  # float8: times a scale that lies elsewhere, under a name of its writer's
    if not tensor.is_floating_point() or is_scaled or tensor.layout != torch.strided or tensor.ndim == 0:
        raise ArtefactError(
            f"{where}: {name} is no dense tensor of floating-point numbers of 16 bits or more ({tensor.dtype}, "
            f"{tensor.layout}, shape {tuple(tensor.shape)}); give weights that were not quantised or compressed"
        )
    return tensor.float()


def _strip(state: Mapping[str, Tensor], prefix: str) -> list[tuple[str, str]]:
    """Each key without ``prefix`` or its outer part (``module.`` of ``module.backbone.``), and the key itself."""
    outer = "".join(f"{part}." for part in prefix.split(".")[:-2])
    return [(key.removeprefix(prefix if key.startswith(prefix) else outer), key) for key in state]


def _scheme(stripped: list[tuple[str, str]], anchor: str) -> Scheme:
    if anchor != _ANCHORS[0]:
        return "hugging face"
    if any(name.startswith("stages.") for name, _ in stripped):
        return "spt-deploy"
    return "official" if any(name.startswith("layers.0.downsample.") for name, _ in stripped) else "timm"


def _our_name(name: str, scheme: Scheme) -> str | None:
    block = _BLOCK.fullmatch(name)
    if block:
        stage, number, rest = block.groups()
        ours = _renamed(rest, _IN_BLOCK)
        return ours and f"backbone.stages.{stage}.blocks.{number}.{ours}"
    downsample = _DOWNSAMPLE.fullmatch(name)
    if downsample:
        stage = int(downsample[1]) + (scheme in ("official", "hugging face"))
        return f"backbone.stages.{stage}.downsample.{downsample[2]}"
    if scheme == "official" and name in ("head.weight", "head.bias"):
        return name.replace("head.", "head.fc.")
    if scheme == "spt-deploy" and name.startswith("head."):
        return name
    return _renamed(name, _MODULES)


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    for theirs, ours in table.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    return None


def _join_qkv(weights: dict[str, Tensor], names: dict[str, str]) -> list[str]:
    """Join query, key and value where all three are there and fit; the file's names of those that lack a companion."""
    lonely: list[str] = []
    for key in [key for key in weights if ".attn.query." in key or ".attn.key." in key or ".attn.value." in key]:
        head, part, kind = key.rsplit(".", 2)
        if key not in weights:
            continue  # joined already
        parts = [f"{head}.{each}.{kind}" for each in ("query", "key", "value")]
        if all(each in weights for each in parts) and len({weights[each].shape[1:] for each in parts}) == 1:
            weights[f"{head}.qkv.{kind}"] = torch.cat([weights.pop(each) for each in parts])
            names[f"{head}.qkv.{kind}"] = ", ".join(names.pop(each) for each in parts)
        else:
            del weights[key]
            lonely.append(names.pop(f"{head}.{part}.{kind}"))
    return lonely
