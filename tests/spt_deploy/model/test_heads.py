from __future__ import annotations

import pytest
import torch

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.model.heads import DETECT_STRIDES, DetectHead, DetectMaps
from tests.spt_deploy.model.models import CLASSES, images, make_model, randomise
from tests.tolerances import PIXELS, assert_close


def make_head(top_k: int = 300, classes: tuple[str, ...] = CLASSES) -> DetectHead:
    config = ModelConfig(BackboneConfig.from_name("spt_micro"), "detect", classes, head_width=16, top_k=top_k)
    head = DetectHead(config)
    randomise(head)
    return head.eval()


def tokens(height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Backbone tokens of two images of the given size, a multiple of 32."""
    generator = torch.Generator().manual_seed(0)
    strides = zip((4, *DETECT_STRIDES), (32, 64, 128, 256), strict=True)
    return tuple(torch.randn(2, height // s, width // s, c, generator=generator) for s, c in strides)


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (200, 333)])
@torch.no_grad()
def test_boxes_lie_in_the_image_scores_fall_and_labels_are_classes(size: tuple[int, int]) -> None:
    output = make_model(task="detect")(images(2, *size)).task
    boxes, scores, labels = output["boxes"], output["scores"], output["labels"]
    assert boxes.shape == (2, scores.shape[1], 4)
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    assert 0 <= x.min() <= x.max() <= size[1]
    assert 0 <= y.min() <= y.max() <= size[0]
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert 0 <= scores.min() <= scores.max() <= 1
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() < len(CLASSES)


@pytest.mark.parametrize(("top_k", "k"), [(10, 10), (300, 300), (9999, (96 + 24 + 6) * 5)])
@torch.no_grad()
def test_k_depends_on_sizes_only(top_k: int, k: int) -> None:
    output = make_head(top_k)(tokens(64, 96), (64, 96))
    assert {name: tuple(t.shape) for name, t in output.items()} == {
        "boxes": (2, k, 4),
        "scores": (2, k),
        "labels": (2, k),
    }


@torch.no_grad()
def test_decoding_equals_a_loop_over_points_and_classes() -> None:
    head, size = make_head(top_k=40), (64, 96)
    given = tokens(*size)
    maps: DetectMaps = head.maps(given)
    output = head(given, size)
    points = [((c + 0.5) * s, (r + 0.5) * s) for s in DETECT_STRIDES for r in range(64 // s) for c in range(96 // s)]
    assert maps.points.tolist() == [list(p) for p in points]
    assert maps.strides.tolist() == [float(s) for s in DETECT_STRIDES for _ in range(64 * 96 // s**2)]
    for image in range(2):
        found = []
        for p, (x, y) in enumerate(points):
            left, top, right, bottom = maps.distances[image, p].tolist()
            box = [max(x - left, 0), max(y - top, 0), min(x + right, 96), min(y + bottom, 64)]
            found += [(maps.logits[image, p, c].sigmoid().item(), c, box) for c in range(len(CLASSES))]
        found.sort(key=lambda entry: -entry[0])
        assert output["labels"][image].tolist() == [c for _, c, _ in found[:40]]
        assert_close(output["scores"][image], torch.tensor([s for s, _, _ in found[:40]]))
        assert output["boxes"][image].tolist() == [pytest.approx(b, abs=PIXELS) for _, _, b in found[:40]]


def test_a_fresh_head_starts_with_scores_near_the_prior() -> None:
    config = ModelConfig(BackboneConfig.from_name("spt_micro"), "detect", ("thing",))
    scores = DetectHead(config).maps(tokens(64, 64)).logits.sigmoid()
    assert 0.005 < scores.mean() < 0.02


@torch.no_grad()
def test_label_head_is_the_mean_over_normalised_tokens() -> None:
    model = make_model("swin_micro")
    output = model(images(2, 64, 96))
    last = output.features.tokens[3]
    mean = torch.stack([model.head.norm(image).flatten(0, 1).sum(0) / 6 for image in last])
    assert_close(output.task["logits"], model.head.fc(mean))


@torch.no_grad()
def test_label_head_weighs_tokens_by_the_last_gate_and_dropped_ones_by_nothing() -> None:
    model = make_model()
    size = images(2, 64, 96)
    generator = torch.Generator().manual_seed(3)
    masks = [torch.rand(kept.shape, generator=generator) < 0.5 for kept in model(size).features.kept]
    output = model(size, masks)
    features = output.features
    weights = torch.where(masks[-1], features.scores[-1].sigmoid(), 0.0)
    weights = weights / weights.sum((1, 2), keepdim=True)
    pooled = torch.einsum("bhwc,bhw->bc", model.head.norm(features.tokens[3]), weights)
    assert_close(output.task["logits"], model.head.fc(pooled))


@torch.no_grad()
@pytest.mark.parametrize("selector", ["threshold", "topk"])
def test_where_nothing_is_kept_the_label_head_is_the_plain_mean(selector: str) -> None:
    model = make_model(selector=selector)
    size = images(2, 64, 96)
    nothing = [torch.zeros_like(kept) for kept in model(size).features.kept]
    output = model(size, nothing)
    mean = model.head.norm(output.features.tokens[3]).flatten(1, 2).mean(1)
    assert_close(output.task["logits"], model.head.fc(mean))


@torch.no_grad()
def test_gates_however_small_weigh_the_same_where_they_are_the_same() -> None:
    model = make_model()
    tokens = tuple(torch.randn(2, 3, 4, model.config.backbone.stage_width(4)) for _ in range(4))
    plain = model.head(tokens)["logits"]
    for gate in (1.0, 1e-3, 1e-30):
        assert_close(model.head(tokens, torch.full((2, 3, 4), gate))["logits"], plain)
