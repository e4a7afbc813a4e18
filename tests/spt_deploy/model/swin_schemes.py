"""The same Swin under the key names of other projects: Hugging Face's own model, and its weights renamed.

The renaming is written from the projects' own lists of names (and the other way round than the code under test), with
the buffers that official files carry.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.spt_deploy.model.models import CLASSES, randomise

if TYPE_CHECKING:
    from transformers import SwinForImageClassification

SCHEMES = ("official", "timm", "hugging face, in files", "hugging face, in memory")


def hugging_face_swin(embed_dim: int = 32, depths: tuple[int, ...] = (2, 2, 2, 2)) -> SwinForImageClassification:
    """A randomised Swin of Hugging Face with a classifier of five classes, in evaluation mode."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=[embed_dim // 32 * 2**i for i in range(4)],
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    model = SwinForImageClassification(config)
    randomise(model)
    return model.eval()


def written_as(scheme: str, model: SwinForImageClassification) -> dict[str, Tensor]:
    """The model's weights by the names of a scheme; every tensor its own storage, as safetensors wants it."""
    in_memory = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if scheme == "hugging face, in memory":
        return in_memory
    if scheme == "hugging face, in files":
        return {_old_hugging_face_name(name): tensor for name, tensor in in_memory.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in in_memory.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([in_memory[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        state[_official_name(name)] = tensor
    if scheme == "timm":
        return {_timm_name(name): tensor for name, tensor in state.items()}
    for block in {name.removesuffix("qkv.weight") for name in state if name.endswith("qkv.weight")}:
        state[f"{block}relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return state


def _official_name(name: str) -> str:
    for theirs, official in {
        "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "swin.embeddings.norm": "patch_embed.norm",
        "swin.layernorm": "norm",
        "swin.encoder.": "",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.q_proj": "attn.qkv",
        "attention.o_proj": "attn.proj",
        "attention.relative_position_bias.": "attn.",
        "classifier": "head",
    }.items():
        name = name.replace(theirs, official)
    return name


def _timm_name(name: str) -> str:
    name = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return re.sub(r"^head\.", "head.fc.", name)


def _old_hugging_face_name(name: str) -> str:
    for new, old in {
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention.relative_position_bias.": "attention.self.",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(new, old)
    return name
