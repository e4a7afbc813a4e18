"""The select label as the selection."""

from __future__ import annotations

import torch

from spt_deploy.config import BackboneConfig
from spt_deploy.model.backbone import Backbone
from spt_deploy.training.label_selection import label_masks
from spt_deploy.training.select_labels import token_labels


def test_each_block_keeps_exactly_the_tokens_in_objects_whatever_the_size() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.from_name("spt_micro")).train()
    masks = torch.zeros(2, 75, 101, dtype=torch.uint8)  # no multiple of anything
    masks[0, 10:20, 30:60] = 1
    masks[1, 74, 100] = 1
    forced = label_masks(backbone.config, masks, torch.tensor([True, True]))
    output = backbone(torch.randn(2, 3, 75, 101), forced)
    for kept, stage in zip(output.kept, output.spa_stages, strict=True):
        assert torch.equal(kept, token_labels(masks, 4 * 2 ** (stage - 1)) > 0)
    assert output.kept[0][1].sum() == 1  # the one pixel in the corner


def test_an_image_of_which_nothing_is_known_keeps_everything_and_one_without_objects_nothing() -> None:
    config = BackboneConfig.from_name("spt_micro", spa_stages=(2, 4))
    forced = label_masks(config, torch.zeros(2, 64, 64, dtype=torch.uint8), torch.tensor([False, True]))
    assert [tuple(mask.shape) for mask in forced] == [(2, 8, 8)] * 2 + [(2, 2, 2)] * 2
    assert all(mask[0].all() and not mask[1].any() for mask in forced)
