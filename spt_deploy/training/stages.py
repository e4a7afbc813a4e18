"""Which layer of a network a parameter belongs to, and stages that do not learn.

Layers are the four stages and, after them, the head; the patch embedding counts with stage 1, a patch merging with the
stage it leads into.
"""

from __future__ import annotations

from torch import nn

from spt_deploy.model.blocks import DropPath
from spt_deploy.model.network import SptModel

HEAD = 5  # the layer after stage 4


def is_gate(name: str) -> bool:
    """Whether a parameter of that name belongs to a gate, an SPA block's or the one before the first SPA stage."""
    return "gate" in name.split(".")


def layer_of(name: str) -> int:
    """The layer, 1 to 4 or `HEAD`, of a parameter of ``SptModel`` by its name."""
    parts = name.split(".")
    if parts[:2] == ["backbone", "patch_embed"]:
        return 1
    if parts[:2] == ["backbone", "stages"]:
        return int(parts[2]) + 1
    return HEAD


def freeze_stages(model: SptModel, count: int) -> None:
    """Let the first ``count`` stages keep their weights, all but their gates.

    Gates go on learning: which tokens matter is what a fine-tune on other images has to learn first, and the gates of
    a model begun from Swin weights are fresh and, frozen, would keep everything for ever.
    """
    for name, parameter in model.named_parameters():
        if layer_of(name) <= count and not is_gate(name):
            parameter.requires_grad_(False)


def train_mode(model: SptModel, frozen: int) -> None:
    """Put ``model`` in training mode, but for stochastic depth in the first ``frozen`` stages.

    Blocks that do not learn gain nothing from being dropped. The noise on the selection stays, for the gates learn.
    """
    model.train()
    for stage in list(model.backbone.stages)[:frozen]:
        for module in stage.modules():
            if isinstance(module, DropPath):
                module.eval()


def learning(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [p for p in model.parameters() if p.requires_grad]
