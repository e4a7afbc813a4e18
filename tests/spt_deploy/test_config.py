"""Configurations validate themselves and survive a round trip through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spt_deploy.config import (
    MIN_IMAGE_SIZE,
    MODEL_NAMES,
    TASKS,
    BackboneConfig,
    ModelConfig,
    parse_image_size,
)
from spt_deploy.errors import UsageError


@pytest.mark.parametrize(
    ("name", "embed_dim", "depths", "heads"),
    [  # the table of the paper, and the small one for tests
        ("spt_micro", 32, (2, 2, 2, 2), (1, 2, 4, 8)),
        ("spt_t", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        ("spt_s", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        ("spt_b", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    ],
)
def test_the_variants_are_the_papers(
    name: str, embed_dim: int, depths: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    config = BackboneConfig.from_name(name)
    assert (config.embed_dim, config.depths, config.heads, config.spa_stages) == (embed_dim, depths, heads, (3, 4))
    assert [config.stage_width(stage) for stage in (1, 2, 3, 4)] == [
        embed_dim,
        2 * embed_dim,
        4 * embed_dim,
        8 * embed_dim,
    ]


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name.startswith("swin")])
def test_swin_is_spt_without_spa_stages(name: str) -> None:
    config = BackboneConfig.from_name(name)
    assert config.spa_stages == ()
    assert config.spa_blocks == ()


def test_spa_blocks_are_named_by_stage_and_block_from_1() -> None:
    assert BackboneConfig.from_name("spt_micro").spa_blocks == ("3.1", "3.2", "4.1", "4.2")
    assert BackboneConfig.from_name("spt_micro", spa_stages=(2,)).spa_blocks == ("2.1", "2.2")


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_survives_json(name: str, task: Any) -> None:
    config = ModelConfig(BackboneConfig.from_name(name, threshold=0.2, packing="per-image"), task, ("a", "b"))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 0.99999999}, "threshold is 0.99999999, in float32 1; expected a number between 0 and 1"),
        ({"threshold": 1e-50}, "threshold is 1e-50, in float32 0; expected a number between 0 and 1"),
        ({"keep_ratio": 0.0}, "keep_ratio is 0.0"),
        ({"window": 0}, "window is 0"),
        ({"window": 7.0}, "window is 7.0; expected a positive whole number"),
        ({"mlp_ratio": -1.0}, "mlp_ratio is -1.0"),
        ({"mlp_ratio": math.inf}, "mlp_ratio is inf"),
        ({"gate_bias": math.nan}, "gate_bias is nan"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"spa_stages": (4, 3)}, "spa_stages is"),
        ({"spa_stages": (0,)}, "spa_stages is"),
        ({"selector": "random"}, "known are threshold, topk"),
        ({"packing": "loose"}, "known are batch, per-image"),
        ({"depths": (2, 2, 2)}, "four positive numbers"),
        ({"depths": (2, 2, 0, 2)}, "four positive numbers"),
        ({"heads": (1, 2, 4, 4)}, "head dimension must be 32"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BackboneConfig.from_name("spt_micro", **changes)


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'spt_xl'; known are spt_micro, spt_t"):
        BackboneConfig.from_name("spt_xl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ()}, "at least one class"),
        ({"class_names": ("a", "b", "a")}, "repeated names: a$"),
        ({"class_names": tuple("abcdefg" * 2)}, "repeated names: a, b, c, d, e and 2 more$"),
        ({"task": "segment"}, "known are classify, multilabel, detect"),
        ({"top_k": 0}, "top_k is 0"),
        ({"head_width": 12}, "multiple of 8"),
    ],
)
def test_a_model_with_an_impossible_head_is_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"task": "classify", "class_names": ("a", "b")} | changes
    with pytest.raises(UsageError, match=message):
        ModelConfig(BackboneConfig.from_name("spt_micro"), **values)


@pytest.mark.parametrize("values", [{}, {"backbone": {}}, {"backbone": {"colour": 1}}])
def test_a_dictionary_that_describes_no_model_is_a_usage_error(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="known fields are"):
        ModelConfig.from_dict(values)


@given(height=st.integers(MIN_IMAGE_SIZE, 10_000), width=st.integers(MIN_IMAGE_SIZE, 10_000))
def test_a_size_that_is_written_is_read_back(height: int, width: int) -> None:
    assert parse_image_size(f"{height}x{width}") == (height, width)
    assert parse_image_size(str(height)) == (height, height)


@given(text=st.text(max_size=8))
@example(text="64\x1f")
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_image_size(text)
    except UsageError:
        return
    assert min(size) >= MIN_IMAGE_SIZE
