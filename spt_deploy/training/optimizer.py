"""AdamW with the groups that Swin uses and one for the gates, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from spt_deploy.training.config import TrainConfig
from spt_deploy.training.stages import HEAD, is_gate, layer_of

FLOOR = 0.01  # of the highest learning rate, where the cosine ends
BETAS = (0.9, 0.999)


def parameter_groups(
    model: nn.Module, weight_decay: float, gate_lr_scale: float, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """The parameters that learn, in groups for an optimiser.

    Norms, biases and relative position tables are not decayed (Swin, arXiv 2103.14030), nor are gates, whose bias and
    weights have to grow large to drop a token.

    Args:
        model: frozen parameters are left out.
        weight_decay: of weight matrices.
        gate_lr_scale: learning rate of the gates over that of the head. They know no layer-wise decay: they start
            fresh where the stages around them do not.
        layer_decay: learning rate of a stage over that of the one after it; the head has 1, stage 4 this number,
            stage 1 and the patch embedding its fourth power.

    Returns:
        Groups with ``name`` (``decay``, ``no_decay`` or ``gates``, before it the layer where layers differ),
        ``params``, ``weight_decay`` and ``lr_scale``.
    """
    groups: dict[tuple[int, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_gate(name):
            key = (HEAD, "gates")
        else:
            decays = parameter.ndim >= 2 and not name.endswith("relative_position_bias_table")
            key = (layer_of(name) if layer_decay != 1 else HEAD, "decay" if decays else "no_decay")
        groups.setdefault(key, []).append(parameter)
    order = ("decay", "no_decay", "gates")
    return [
        {
            "name": kind if layer == HEAD else f"stage {layer} {kind}",
            "params": groups[layer, kind],
            "weight_decay": weight_decay if kind == "decay" else 0.0,
            "lr_scale": gate_lr_scale if kind == "gates" else layer_decay ** (HEAD - layer),
        }
        for layer, kind in sorted(groups, key=lambda key: (key[0], order.index(key[1])))
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``, fused: one pass over memory instead of ten."""
    groups = parameter_groups(model, config.weight_decay, config.gate_lr_scale, config.layer_decay)
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
