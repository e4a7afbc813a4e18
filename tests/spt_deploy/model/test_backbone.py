from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_deploy.config import Packing, Task
from spt_deploy.errors import UsageError
from spt_deploy.model import operators
from spt_deploy.model.backbone import PatchMerging
from spt_deploy.model.heads import DetectHead
from spt_deploy.model.network import SptModel
from spt_deploy.model.shapes import stage_sizes
from tests.spt_deploy.model.models import images, make_model
from tests.tolerances import MODEL, assert_close

STAGE_SETS = [(3, 4), (4,), (3,), (2, 3, 4), (1, 2, 3, 4), (2, 4), ()]


@pytest.mark.parametrize("packing", ["batch", "per-image"])
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (45, 32), (200, 333)])
@torch.no_grad()
def test_images_of_any_size_from_32_pixels_run(size: tuple[int, int], packing: Packing) -> None:
    model = make_model(packing=packing)
    found = model(images(2, *size)).features
    assert tuple(t.shape[1:3] for t in found.tokens) == stage_sizes(size)
    assert [t.shape[-1] for t in found.tokens] == [32, 64, 128, 256]
    assert [m.shape[1] for m in found.maps] == [32, 64, 128, 256]
    assert all(torch.isfinite(t).all() for t in found.tokens)
    assert found.selection.shape == (2, *stage_sizes(size)[2])


@pytest.mark.parametrize("size", [(31, 64), (64, 10)])
def test_smaller_images_are_refused_with_the_least_size(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"{size[0]}x{size[1]} is too small; .* at least 32 pixels"):
        make_model()(images(1, *size))


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")  # dynamo's, of that alone
@torch.no_grad()
def test_a_compiler_traces_the_model_in_one_graph_where_no_size_depends_on_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operators, "BOUNDED_DEVICES", {"cpu"})  # as kernels have it
    model, batch = make_model(), images(2, 64, 96)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for name, expected in model(batch).named().items():
        assert_close(compiled(batch).named()[name], expected, MODEL)


@torch.no_grad()
def test_patch_merging_concatenates_neighbours_column_by_column() -> None:
    merging = PatchMerging(8)
    x = torch.randn(2, 5, 6, 8)
    padded = F.pad(x, (0, 0, 0, 0, 0, 1))
    corners = [padded[:, row::2, column::2] for row, column in [(0, 0), (1, 0), (0, 1), (1, 1)]]
    expected = merging.reduction(merging.norm(torch.cat(corners, -1)))
    assert_close(merging(x), expected)


@pytest.mark.parametrize("stages", STAGE_SETS)
@torch.no_grad()
def test_where_the_blocks_own_gates_are_silent_scores_are_the_pooled_ones_of_the_finer_scale(
    stages: tuple[int, ...],
) -> None:
    model = make_model(spa_stages=stages)
    speaks = "backbone.gate." if stages and stages[0] > 1 else "backbone.stages.0.blocks.1.gate."
    for name, parameter in model.named_parameters():
        if "gate." in name and not name.startswith(speaks):
            parameter.fill_(-100.0 if name.endswith("bias") else 0.0)
    found = model(images(2, 100, 132)).features
    sizes = stage_sizes((100, 132))
    assert found.spa_stages == tuple(s for s in stages for _ in range(2))
    assert [s.shape[1:] for s in found.scores] == [sizes[s - 1] for s in found.spa_stages]
    has_gate = bool(stages) and stages[0] > 1
    assert (found.gate_scores is not None) == has_gate
    assert len(found.supervised_scores) == len(found.scores) + has_gate
    if not stages:
        return
    finest = found.scores[1] if found.gate_scores is None else found.gate_scores
    assert finest.unique().numel() > 100
    for stage, score in list(zip(found.spa_stages, found.scores, strict=True))[2 * (not has_gate) :]:
        expected = finest
        for _ in range(stage - (stages[0] - has_gate)):
            expected = F.max_pool2d(expected[:, None], 2, ceil_mode=True)[:, 0]
        assert torch.equal(score, expected)


@pytest.mark.parametrize("stages", STAGE_SETS)
@torch.no_grad()
def test_select_ratio_and_selection_count_hand_made_masks(stages: tuple[int, ...]) -> None:
    model = make_model(spa_stages=stages)
    size = (72, 104)  # stage 3 has 5 x 7 tokens, stage 4 has 3 x 4: odd sides
    sizes = stage_sizes(size)
    blocks = [s for s in stages for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(2, *sizes[s - 1], generator=generator) < 0.5 for s in blocks]
    output = model(images(2, *size), forced=masks)
    found = output.features
    assert all(torch.equal(a, b) for a, b in zip(found.kept, masks, strict=True))
    if not stages:
        assert set(output.named()) == {"logits"}
        return
    assert set(output.named()) == {"logits", "select_ratio", "selection"}
    assert_close(found.select_ratio, torch.tensor([[m[b].sum() / m[b].numel() for m in masks] for b in range(2)]))
    for b in range(2):
        for y in range(5):
            for x in range(7):
                shares = [_share(m[b], s, y, x, sizes) for m, s in zip(masks, blocks, strict=True)]
                assert found.selection[b, y, x].item() == pytest.approx(sum(shares) / len(blocks), abs=1e-6)


def _share(mask: Tensor, stage: int, y: int, x: int, sizes: tuple[tuple[int, int], ...]) -> float:
    """Share of a mask's tokens that lie at token (y, x) of stage 3, level by level."""
    if stage == 4:
        return float(mask[y // 2, x // 2])
    if stage == 3:
        return float(mask[y, x])
    height, width = sizes[stage]
    finer = torch.tensor(
        [[mask[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].float().mean() for j in range(width)] for i in range(height)]
    )
    return _share(finer, stage + 1, y, x, sizes)


@pytest.mark.parametrize("task", ["classify", "detect"])
@torch.no_grad()
def test_with_per_image_packing_a_models_answer_does_not_depend_on_the_batch(task: Task) -> None:
    model = make_model(task=task, packing="per-image")
    batch = images(4, 90, 70)
    together, kept = answer(model, batch)
    assert 0.2 < kept.float().mean() < 0.8
    order = torch.tensor([2, 0, 3, 1])
    shuffled, _ = answer(model, batch[order])
    assert_close(shuffled, together[order], MODEL)
    assert_close(torch.cat([answer(model, image[None])[0] for image in batch]), together, MODEL)


def answer(model: SptModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """All that a head predicts before it is ranked, and all kept masks, each B x many."""
    output = model(batch)
    kept = torch.cat([mask.flatten(1) for mask in output.features.kept], 1)
    if isinstance(model.head, DetectHead):
        maps = model.head.maps(output.features.tokens)
        return torch.cat([maps.logits.flatten(1), (maps.distances / maps.strides[:, None]).flatten(1)], 1), kept
    return output.task["logits"], kept


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("packing", ["batch", "per-image"])
@torch.no_grad()
def test_a_batch_that_keeps_nothing_or_everything_runs(packing: Packing, kept: bool) -> None:
    model = make_model(packing=packing)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.bias"):
            parameter.fill_(100.0 if kept else -100.0)
    output = model(images(2, 64, 64)).named()
    assert (output["select_ratio"] == float(kept)).all()
    assert (output["selection"] == float(kept)).all()
    assert torch.isfinite(output["logits"]).all()


def test_training_gives_every_parameter_a_gradient() -> None:
    model = make_model(drop_path=0.1).train()
    for name, parameter in model.named_parameters():
        if "stages.3" in name and name.endswith("gate.bias"):  # else every score of stage 4 may come from the finer one
            nn.init.constant_(parameter, -3.0)
    torch.manual_seed(0)
    output = model(images(4, 64, 64))
    loss = output.task["logits"].square().mean()
    loss = loss + sum(s.sigmoid().mean() for s in output.features.supervised_scores)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without


@torch.no_grad()
def test_bfloat16_autocast_of_a_model_keeps_scores_in_float32() -> None:
    model = make_model()
    masks = [torch.rand(2, *stage_sizes((64, 64))[s - 1]) < 0.5 for s in (3, 3, 4, 4)]
    expected = model(images(2, 64, 64), masks)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(images(2, 64, 64), masks)
    assert {s.dtype for s in actual.features.supervised_scores} == {torch.float32}
    assert_close(actual.task["logits"].bfloat16(), expected.task["logits"], MODEL)
