"""Model facts survive their travel, and what is none of ours is said to be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from spt_deploy.config import BackboneConfig, ModelConfig
from spt_deploy.errors import ArtefactError, UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.preprocess import Preprocessing

FACTS = ModelFacts(
    model=ModelConfig(BackboneConfig.from_name("spt_t"), "detect", ("person", "dog, small", "Fußgänger")),
    preprocessing=Preprocessing((800, 1280), "letterbox", mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1.0)),
    tool_version="0.1.0",
    checkpoint_sha256="ab" * 32,
)


def test_facts_survive_json_in_one_line() -> None:
    text = FACTS.to_json()
    assert "\n" not in text
    assert ModelFacts.from_json(text, "x.onnx") == FACTS


def test_facts_name_the_colour_order_for_other_readers() -> None:
    assert FACTS.to_dict()["preprocessing"]["colour_order"] == "RGB"


def test_a_threshold_at_run_time_survives_json_and_files_that_do_not_say_have_none() -> None:
    facts = replace(FACTS, runtime_threshold=True)
    assert ModelFacts.from_json(facts.to_json(), "x.onnx") == facts
    older = FACTS.to_dict()
    del older["runtime_threshold"]
    assert ModelFacts.from_dict(older, "x.onnx").runtime_threshold is False


def test_bytes_as_input_survive_json_and_files_that_do_not_say_take_numbers() -> None:
    facts = replace(FACTS, uint8_input=True)
    assert ModelFacts.from_json(facts.to_json(), "x.onnx") == facts
    assert facts.image_input.shape == (800, 1280, 3)
    older = FACTS.to_dict()
    del older["uint8_input"]
    assert ModelFacts.from_dict(older, "x.onnx").image_input.shape == (3, 800, 1280)


def test_standard_operators_alone_survive_json_and_an_int8_file_has_no_others() -> None:
    facts = replace(FACTS, inlined=True)
    assert ModelFacts.from_json(facts.to_json(), "x.onnx") == facts
    older = FACTS.to_dict()
    del older["inlined"]
    assert ModelFacts.from_dict(older, "x.onnx").has_spt_nodes
    assert not facts.has_spt_nodes
    assert not replace(FACTS, precision="int8").has_spt_nodes


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"selector": "topk", "keep_ratio": 0.3}, r"spt_t keeps the best 30% .*topk.*export it without"),
        ({"spa_stages": ()}, r"spt_t has no SPA blocks.*export it without --runtime-threshold"),
    ],
)
def test_a_model_without_threshold_can_have_none_at_run_time(changes: dict[str, Any], match: str) -> None:
    model = replace(FACTS.model, backbone=replace(FACTS.model.backbone, **changes))
    with pytest.raises(UsageError, match=match):
        replace(FACTS, model=model, runtime_threshold=True)


@pytest.mark.parametrize("key", ["model", "preprocessing", "tool_version", "checkpoint_sha256"])
def test_a_missing_fact_is_an_artefact_error_that_names_the_file(key: str) -> None:
    values = FACTS.to_dict()
    del values[key]
    with pytest.raises(ArtefactError, match=r"x\.onnx has a model description that cannot be read"):
        ModelFacts.from_dict(values, "x.onnx")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"text"', '{"model": 1}', '{"model": {"backbone": null}}'])
def test_text_that_describes_no_model_is_an_artefact_error_that_names_the_file(text: str) -> None:
    with pytest.raises(ArtefactError, match=r"x\.onnx has a model description"):
        ModelFacts.from_json(text, "x.onnx")


def test_a_value_out_of_range_is_an_artefact_error() -> None:
    values = json.loads(FACTS.to_json())
    values["preprocessing"]["size"] = [8, 8]
    with pytest.raises(ArtefactError, match="8x8 is too small"):
        ModelFacts.from_dict(values, "x.onnx")


@pytest.mark.parametrize("value", [None, [], "x", {"size": [math.inf, 64]}, {"size": [64, 64], "std": [math.nan] * 3}])
def test_a_preprocessing_that_is_none_is_an_artefact_error(value: object) -> None:
    values = FACTS.to_dict() | {"preprocessing": value}
    with pytest.raises(ArtefactError, match=r"x\.onnx has a model description that cannot be read"):
        ModelFacts.from_dict(values, "x.onnx")
