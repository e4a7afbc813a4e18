from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spt_deploy.config import BackboneConfig, ModelConfig, Packing, Task
from spt_deploy.errors import UsageError
from spt_deploy.model.complexity import PARTS, Complexity, complexity, kept_tokens
from spt_deploy.model.network import SptModel
from spt_deploy.model.shapes import stage_sizes
from tests.spt_deploy.model.models import CLASSES, images, make_model

PAPER_SIZE, SMALL = (800, 1280), (224, 224)

# GMACs of the backbone, with window padding: total, qkv, attention, projection, MLP, merge.
WORK = [
    ("swin_t", SMALL, (4.49, 1.04, 0.14, 0.35, 2.77, 0.17)),
    ("swin_s", SMALL, (8.74, 2.08, 0.23, 0.69, 5.55, 0.17)),
    ("swin_b", SMALL, (15.43, 3.70, 0.30, 1.23, 9.87, 0.31)),
    ("swin_t", PAPER_SIZE, (95.56, 24.00, 3.11, 8.00, 56.62, 3.54)),
    ("swin_s", PAPER_SIZE, (187.60, 48.97, 5.23, 16.32, 113.25, 3.54)),
    ("swin_b", PAPER_SIZE, (331.06, 87.06, 6.97, 29.02, 201.33, 6.29)),
]

# MACs of Swin over those of SPT at select ratios 0, 0.1, 0.25, 0.5, 1, containers taken as filled to the brim.
SPEED_UP = [
    ("t", SMALL, (1.278, 1.243, 1.195, 1.122, 1.000)),
    ("s", SMALL, (1.390, 1.337, 1.266, 1.163, 1.000)),
    ("t", PAPER_SIZE, (1.325, 1.289, 1.239, 1.164, 1.038)),
    ("s", PAPER_SIZE, (1.457, 1.402, 1.328, 1.220, 1.049)),
]
RATIOS = (0.0, 0.1, 0.25, 0.5, 1.0)


def config(name: str, task: Task = "classify", **backbone: Any) -> ModelConfig:
    return ModelConfig(BackboneConfig.from_name(name, **backbone), task, CLASSES, head_width=16)


def at_ratio(name: str, size: tuple[int, int], ratio: float) -> Complexity:
    of = config(name)
    return complexity(of, size, kept_tokens(of.backbone, size, ratio))


def backbone_macs(counted: Complexity) -> int:
    return counted.total.macs - counted.of(part="head").macs


@pytest.mark.parametrize(("name", "size", "expected"), WORK)
def test_swin_has_the_known_gmacs_part_by_part(name: str, size: tuple[int, int], expected: tuple[float, ...]) -> None:
    counted = complexity(config(name), size)
    parts = [counted.of(part=part).macs for part in ("qkv", "attention", "projection", "MLP", "merge")]
    assert [macs / 1e9 for macs in (backbone_macs(counted), *parts)] == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize(("variant", "size", "expected"), SPEED_UP)
def test_spt_has_the_known_ideal_speed_up(variant: str, size: tuple[int, int], expected: tuple[float, ...]) -> None:
    dense = backbone_macs(complexity(config(f"swin_{variant}"), size))
    nothing, everything = (backbone_macs(at_ratio(f"spt_{variant}", size, ratio)) for ratio in (0.0, 1.0))
    ideal = [dense / (nothing + ratio * (everything - nothing)) for ratio in RATIOS]
    assert ideal == pytest.approx(expected, abs=0.00051)
    executed = [dense / backbone_macs(at_ratio(f"spt_{variant}", size, ratio)) for ratio in RATIOS]
    # What is executed pads the last container of each image, and keeps whole tokens.
    assert executed == pytest.approx(ideal, rel=0.006)


def flops_by_counter(model: SptModel, batch: torch.Tensor, masks: Sequence[torch.Tensor]) -> int:
    # Gradients on: so the four operations run as plain functions, into which the counter sees.
    with FlopCounterMode(display=False) as counter:
        model(batch, list(masks) or None)
    return counter.get_total_flops()


def random_masks(model: SptModel, size: tuple[int, int], batch: int) -> list[torch.Tensor]:
    """One a block; the first image keeps nothing, the second everything, the others some."""
    generator = torch.Generator().manual_seed(0)
    masks = []
    for name in model.config.backbone.spa_blocks:
        mask = torch.rand(batch, *stage_sizes(size)[int(name[0]) - 1], generator=generator) < 0.3
        mask[0], mask[1:2] = False, True
        masks.append(mask)
    return masks


def kept_of(masks: Sequence[torch.Tensor]) -> list[list[int]]:
    return [mask.flatten(1).sum(1).tolist() for mask in masks]


@pytest.mark.parametrize(
    ("task", "packing"),
    [("classify", "batch"), ("classify", "per-image"), ("detect", "per-image"), ("classify", "static")],
)
@pytest.mark.parametrize("size", [(64, 64), (100, 133)])
@pytest.mark.parametrize("stages", [(), (3, 4), (1, 2, 3, 4)])
def test_macs_are_half_the_flops_that_torch_counts(
    stages: tuple[int, ...], size: tuple[int, int], task: Task, packing: Packing
) -> None:
    model = make_model(task=task, spa_stages=stages, packing=packing)
    masks = random_masks(model, size, batch=3)
    counted = complexity(model.config, size, kept_of(masks), batch=3)
    assert 2 * counted.total.macs == flops_by_counter(model, images(3, *size), masks)


@pytest.mark.parametrize(
    "backbone", [{"capacity": 0.1}, {"capacity": 0.6}, {"selector": "topk", "keep_ratio": 0.9}, {"window": 4}]
)
def test_static_packing_computes_all_of_its_room_whatever_is_kept(backbone: dict[str, Any]) -> None:
    model, size = make_model(packing="static", **backbone), (256, 192)
    counts = set()
    for ratio in (0.0, 1.0):
        kept = kept_tokens(model.config.backbone, size, ratio, batch=2)
        counts.add(2 * complexity(model.config, size, kept, 2).total.macs)
    assert counts == {flops_by_counter(model, images(2, *size), ())}


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_macs_are_half_the_flops_when_nothing_or_everything_is_kept(ratio: float) -> None:
    model, size = make_model(), (90, 70)
    masks = [torch.full_like(mask, bool(ratio)) for mask in random_masks(model, size, batch=2)]
    kept = kept_tokens(model.config.backbone, size, ratio, batch=2)
    assert [list(images) for images in kept] == kept_of(masks)
    assert 2 * complexity(model.config, size, kept, 2).total.macs == flops_by_counter(model, images(2, *size), masks)


@pytest.mark.parametrize("name", ["swin_micro", "spt_micro", "spt_t", "spt_s", "swin_b"])
@pytest.mark.parametrize("task", ["classify", "detect"])
def test_parameters_are_those_of_the_model_component_by_component(name: str, task: Task) -> None:
    of = config(name, task)
    with torch.device("meta"):
        model = SptModel(of)
    expected: dict[tuple[str, str], int] = {}
    for parameter_name, parameter in model.named_parameters():
        key = component_of(parameter_name, of.backbone)
        expected[key] = expected.get(key, 0) + parameter.numel()
    counted = complexity(of, SMALL, kept_tokens(of.backbone, SMALL, 1.0))
    assert {(c.place, c.part): c.parameters for c in counted.components} == expected
    assert counted.total.parameters == sum(p.numel() for p in model.parameters())
    assert {c.part for c in counted.components} <= set(PARTS)


def component_of(name: str, backbone: BackboneConfig) -> tuple[str, str]:
    """The place and part that a parameter's name speaks of."""
    if name.startswith("head."):
        return "head", "head"
    if name.startswith("backbone.patch_embed."):
        return "patch embedding", "patch embedding"
    if name.startswith("backbone.gate."):
        return f"stage {backbone.spa_stages[0] - 1}", "gate"
    place = f"stage {int(name.split('.')[2]) + 1}"
    for key, part in {
        "downsample": "merge",
        "gate": "gate",
        "qkv": "qkv",
        "relative_position": "attention",
        "attn.proj": "projection",
        "mlp": "MLP",
        "norm": "norm",
    }.items():
        if key in name:
            return place, part
    raise AssertionError(name)


def test_kept_tokens_take_one_ratio_or_one_for_each_block() -> None:
    backbone = BackboneConfig.from_name("spt_micro")
    assert kept_tokens(backbone, SMALL, 0.25, batch=2) == ((49, 49), (49, 49), (12, 12), (12, 12))
    assert kept_tokens(backbone, SMALL, [0, 0.5, 1, 0.1]) == ((0,), (98,), (49,), (5,))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, [0.5], [0.5, 0.5, 0.5, 2.0]])
def test_select_ratios_that_cannot_be_are_refused(ratio: Any) -> None:
    with pytest.raises(UsageError, match="select ratio"):
        kept_tokens(BackboneConfig.from_name("spt_micro"), SMALL, ratio)


def test_kept_tokens_of_another_model_or_batch_are_refused() -> None:
    for kept in ([], [[1], [1], [1], [1]]):
        with pytest.raises(UsageError, match="expected 4 blocks with 2 images each"):
            complexity(config("spt_micro"), SMALL, kept, batch=2)
