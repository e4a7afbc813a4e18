"""With ``spa_stages=()`` our model is Swin: the reference is Hugging Face's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.network import SptModel
from spt_deploy.model.swin_keys import rename
from spt_deploy.model.swin_weights import fit_swin_weights
from tests.spt_deploy.model.models import CLASSES, images
from tests.spt_deploy.model.swin_schemes import hugging_face_swin
from tests.tolerances import MODEL, assert_close

if TYPE_CHECKING:
    from transformers import SwinForImageClassification


@pytest.fixture(scope="module")
def theirs() -> SwinForImageClassification:
    return hugging_face_swin(96, (2, 2, 6, 2))


@pytest.fixture(scope="module")
def ours(theirs: SwinForImageClassification) -> SptModel:
    model = SptModel(ModelConfig(BackboneConfig.from_name("swin_t"), "classify", CLASSES))
    weights, _ = fit_swin_weights(rename(theirs.state_dict(), "a Hugging Face model"), model.config)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("size", [(224, 224), (200, 333)])
@torch.no_grad()
def test_swin_t_equals_hugging_face_at_every_stage(
    ours: SptModel, theirs: SwinForImageClassification, size: tuple[int, int]
) -> None:
    theirs = copy.deepcopy(theirs)  # a Hugging Face block keeps the window and shift of the smallest image it has seen
    batch = images(2, *size)
    expected = theirs.swin(batch, output_hidden_states=True)
    embedded, sizes = theirs.swin.embeddings(batch)
    stages = theirs.swin.encoder(
        embedded, sizes, output_hidden_states_before_downsampling=True, output_hidden_states=True
    )
    output = ours(batch)
    tokens = output.features.tokens
    assert_close(ours.head.norm(tokens[3]).flatten(1, 2), expected.last_hidden_state, MODEL)
    assert_close(output.task["logits"], theirs(batch).logits, MODEL)
    for own, other in zip(tokens, stages.reshaped_hidden_states[1:], strict=True):
        other = other.permute(0, 2, 3, 1)
        # Stages are not normalised and grow with depth; what reads them normalises them.
        assert_close(*(F.layer_norm(t, t.shape[-1:]) for t in (own, other)), MODEL)
