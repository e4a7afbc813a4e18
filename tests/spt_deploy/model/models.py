"""Small models with weights that make a difference: every bias, table and gate random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.model.network import SptModel

CLASSES = ("apple", "pear", "plum", "quince", "rowan")


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fresh weights would hide mistakes: biases of 0, LayerNorms of 1, gates that keep everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gate.bias"):
                parameter.fill_(-6.0)  # scores of -6 +- 1, raised by those of the finer scale: some are kept, some not
            elif "gate." in name:
                parameter.copy_(noise * parameter.numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("relative_position_bias_table"):
                parameter.copy_(0.5 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def make_model(name: str = "spt_micro", task: Task = "classify", seed: int = 0, **backbone: Any) -> SptModel:
    """A randomised model in evaluation mode."""
    model = SptModel(ModelConfig(BackboneConfig.from_name(name, **backbone), task, CLASSES, head_width=16))
    randomise(model, seed)
    return model.eval()


def images(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Normal noise, B x 3 x H x W."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
