"""AdamW with the groups that Swin uses and one for the gates, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from spt_deploy.training.config import TrainConfig

FLOOR = 0.01  # of the highest learning rate, where the cosine ends
BETAS = (0.9, 0.999)


def parameter_groups(model: nn.Module, weight_decay: float, gate_lr_scale: float) -> list[dict[str, object]]:
    """Parameters in three groups for an optimiser: ``decay``, ``no_decay`` and ``gates``.

    Norms, biases and relative position tables are not decayed (Swin, arXiv 2103.14030), nor are gates, whose bias and
    weights have to grow large to drop a token. Each group has its ``name`` and ``lr_scale``.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "gates": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "gate" in name.split("."):
            groups["gates"].append(parameter)
        elif parameter.ndim < 2 or name.endswith("relative_position_bias_table"):
            groups["no_decay"].append(parameter)
        else:
            groups["decay"].append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": weight_decay if name == "decay" else 0.0,
            "lr_scale": gate_lr_scale if name == "gates" else 1.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``, fused: one pass over memory instead of ten."""
    groups = parameter_groups(model, config.weight_decay, config.gate_lr_scale)
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """The share of the highest learning rate that a step has.

    Linear from one warm-up step's share to 1 over the first ``warmup`` of the run, then a half cosine to ``FLOOR``.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: share of the run, in [0, 1).
    """
    warm = math.ceil(steps * warmup)
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, steps - 1 - warm))
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
