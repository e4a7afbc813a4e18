"""Selection-aware parity on real exported models: what passes, and that errors planted in a file are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from spt_deploy.errors import InputError
from spt_deploy.facts import METADATA_KEY, ModelFacts
from spt_deploy.model.blocks import SpaBlock
from spt_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from spt_deploy.parity.checks import (
    PairReport,
    batch_independence,
    check_same_model,
    check_same_threshold,
    compare_runners,
)
from spt_deploy.parity.inputs import folder_cases, generated_cases
from spt_deploy.parity.probe import open_probe
from spt_deploy.parity.selection import kept_of
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.torch_runner import TorchRunner
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model

SIZE = (64, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("checks"), SIZE)


def _compare(checkpoint: Path, exported: Path, packing: str = "per-image") -> PairReport:
    with TorchRunner(checkpoint, "cpu", packing, SIZE) as ours, open_runner(exported, device="cpu") as theirs:  # type: ignore[arg-type]
        return compare_runners(ours, theirs, generated_cases(SIZE))


def _changed(made: Exported, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(made.onnx)
    change(proto)
    path = folder / "changed.onnx"
    onnx.save(proto, path)
    return path


def _scale(proto: onnx.ModelProto, suffix: str, factor: float) -> None:
    found = [t for t in proto.graph.initializer if t.name.endswith(suffix)]
    assert found, suffix
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"packing": "batch"},
        {"selector": "topk", "keep_ratio": 0.3},
        {"task": "detect"},
        {"task": "multilabel"},
        {"name": "swin_micro"},
        {"spa_stages": (2, 3, 4)},
    ],
    ids=lambda v: " ".join(str(x) for x in v.values()) or "threshold",
)
def test_an_exported_model_equals_its_checkpoint(variant: dict[str, object], tmp_path: Path) -> None:
    made = make_exported(tmp_path, SIZE, **variant)  # type: ignore[arg-type]
    report = _compare(made.checkpoint, made.onnx, str(variant.get("packing", "per-image")))
    assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
    assert report.agreement == 1.0
    if "name" not in variant:
        assert any(0 < block.select_ratio < 1 for block in report.blocks)  # or the cases would prove little


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_ranking_of_equal_scores_is_the_same_in_every_runtime(runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="an extra")
    model = make_model(selector="topk", keep_ratio=0.3)
    for block in model.backbone.modules():
        if isinstance(block, SpaBlock):
            torch.nn.init.zeros_(block.gate.weight)
    torch.nn.init.zeros_(model.backbone.gate.weight)
    made = make_exported(tmp_path, SIZE, model=model)
    with TorchRunner(made.checkpoint, "cpu") as ours, open_runner(made.onnx, runtime, "cpu") as theirs:
        report = compare_runners(ours, theirs, generated_cases(SIZE))
        kept = [runner.infer(np.zeros((2, 3, *SIZE), np.float32))["selection"] for runner in (ours, theirs)]
    assert report.passed, [(c.name, c.verdict) for c in report.cases if not c.passed]
    assert not any(block.flips for block in report.blocks)
    np.testing.assert_array_equal(*kept)


def test_a_wrong_weight_is_found(made: Exported, tmp_path: Path) -> None:
    path = _changed(made, tmp_path, lambda proto: _scale(proto, "head.fc.weight", 1.001))
    report = _compare(made.checkpoint, path)
    assert not report.passed
    assert all(block.max_score_error < 1e-3 for block in report.blocks)  # the selection is not to blame
    assert {case.verdict for case in report.cases if not case.passed} == {"outputs differ"}


def test_a_wrong_gate_is_found_and_named(made: Exported, tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        _scale(proto, "stages.2.blocks.0.gate.bias", 1.01)

    report = _compare(made.checkpoint, _changed(made, tmp_path, change))
    assert not report.passed
    assert report.blocks[0].max_score_error > 1e-2
    assert "selection scores differ" in {case.verdict for case in report.cases}


def test_a_mask_that_lets_images_see_each_other_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch packing, with the codes of an image's tokens moved by a single place from those of the image before.

    In the file's functions, which operators of ours would take the place of.
    """
    monkeypatch.setattr("spt_deploy.runtimes.openvino_runner.operators_of_ours", lambda: "")
    made = make_exported(tmp_path, SIZE, packing="batch", name="spt_micro")

    def change(proto: onnx.ModelProto) -> None:
        (function,) = [f for f in proto.functions if f.name == "TokenCodes"]
        (image,) = [n.output[0] for n in function.node if n.op_type == "Unsqueeze"]
        (apart,) = [n for n in function.node if n.op_type == "Mul" and image in n.input]
        apart.op_type = "Mod"  # image * span becomes image, which is smaller than the span

    assert not _compare(made.checkpoint, _changed(made, tmp_path, change), "batch").passed


def test_a_token_on_the_threshold_that_flips_is_told_apart_from_an_error(made: Exported, tmp_path: Path) -> None:
    """A threshold a hair above one score, and a file whose gates are two hairs higher: that token flips."""
    images = generated_cases(SIZE)[2].images
    with open_runner(made.checkpoint) as runner:
        score = open_probe(runner).run(images).scores[0].flatten()
    hair = 2e-5
    near = float(score[np.abs(score + 5).argmin()]) + hair
    loaded = load_checkpoint(made.checkpoint)
    backbone = replace(loaded.facts.model.backbone, threshold=float(torch.tensor(near, dtype=torch.float64).sigmoid()))
    facts = replace(loaded.facts, model=replace(loaded.facts.model, backbone=backbone))
    checkpoint = tmp_path / "model.pt"
    save_checkpoint(checkpoint, replace(loaded, facts=facts).build(), facts.preprocessing)

    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if tensor.name.endswith("gate.bias"):
                tensor.CopyFrom(numpy_helper.from_array(value + np.float32(2 * hair), tensor.name))
            elif tensor.name.endswith("backbone.threshold"):
                tensor.CopyFrom(numpy_helper.from_array(np.float32(near), tensor.name))
        packed = replace(facts, model=replace(facts.model, backbone=replace(backbone, packing="per-image")))
        helper.set_model_props(proto, {METADATA_KEY: packed.to_json()})

    exported = _changed(made, tmp_path, change)
    with open_runner(checkpoint) as ours, open_runner(exported, device="cpu") as theirs:
        report = compare_runners(ours, theirs, generated_cases(SIZE))
    assert report.passed, [(c.name, c.verdict) for c in report.cases]
    assert sum(block.flips for block in report.blocks) > 0
    assert max(block.max_margin for block in report.blocks) < 4 * hair
    assert not report.free_differences["selection"].passed  # with its own selection it does differ
    assert report.differences["logits"].passed

    def select_less(proto: onnx.ModelProto) -> None:
        change(proto)
        (threshold,) = [t for t in proto.graph.initializer if t.name.endswith("backbone.threshold")]
        threshold.CopyFrom(numpy_helper.from_array(np.float32(near + 1), threshold.name))

    wrong = _changed(made, tmp_path, select_less)
    with open_runner(checkpoint) as ours, open_runner(wrong, device="cpu") as theirs:
        report = compare_runners(ours, theirs, generated_cases(SIZE)[2:3])
    assert sum(block.flips for block in report.blocks) > 0
    assert not report.passed  # its scores are as good, and it does not select by them


def test_forcing_a_selection_is_obeyed_by_every_runtime(made: Exported) -> None:
    images = generated_cases(SIZE)[1].images
    with open_runner(made.checkpoint) as ours, open_runner(made.onnx, "onnxruntime") as theirs:
        probes = [open_probe(ours), open_probe(theirs)]
        free = probes[0].run(images)
        masks = [np.zeros(s.shape, dtype=np.bool_) for s in free.scores]
        masks[0][:, :3] = True
        for probe in probes:
            ratio = probe.run(images, masks).outputs["select_ratio"]
            np.testing.assert_allclose(ratio, [[3 / 16, 0, 0, 0]] * len(images))


def test_scores_seen_by_a_probe_select_what_the_model_kept(made: Exported) -> None:
    images = generated_cases(SIZE)[2].images
    with open_runner(made.onnx) as runner:
        seen = open_probe(runner).run(images)
        kept = [kept_of(score, runner.facts.model.backbone).mean(1) for score in seen.scores]
    np.testing.assert_allclose(np.stack(kept, 1), seen.outputs["select_ratio"], atol=1e-6)


def test_answers_do_not_depend_on_the_batch_with_per_image_packing(made: Exported) -> None:
    images = np.random.default_rng(3).standard_normal((4, 3, *SIZE), dtype=np.float32)
    for path in made:
        with open_runner(path, device="cpu") as runner:
            report = batch_independence(runner, images)
        assert report.promised
        assert report.passed, report.differences


def test_batch_packing_does_not_promise_independence_and_does_depend(tmp_path: Path) -> None:
    made = make_exported(tmp_path, SIZE, packing="batch")
    # Sixteen tokens an image in stage 3: so many images that some image's tokens are cut in two by a container.
    images = np.random.default_rng(3).standard_normal((30, 3, *SIZE), dtype=np.float32)
    with open_runner(made.onnx) as runner:
        report = batch_independence(runner, images)
    assert not report.promised
    assert report.passed
    assert not all(d.passed for d in report.differences.values())  # the check can tell


def test_other_models_cannot_be_compared(made: Exported, tmp_path: Path) -> None:
    other = make_exported(tmp_path, (32, 64))
    ours, theirs = open_runner(made.checkpoint), open_runner(other.onnx)
    with ours, theirs, pytest.raises(InputError, match="another preprocessing"):
        compare_runners(ours, theirs, [])


def test_another_capacity_is_another_packing_only_where_there_is_one(made: Exported) -> None:
    held = partial(_held, made)
    check_same_model(held(capacity=0.1), held(capacity=0.9), "other.onnx")
    room, more = held(packing="static", capacity=0.1), held(packing="static", capacity=0.9)
    with pytest.raises(InputError, match=r"packing .*\(static with capacity 0\.9 against static with capacity 0\.1\)"):
        check_same_model(room, more, "other.onnx")


def test_another_threshold_is_no_matter_where_none_selects(made: Exported) -> None:
    held = partial(_held, made)
    check_same_threshold(held(selector="topk", threshold=0.1), held(selector="topk", threshold=0.9), "other.onnx")
    check_same_threshold(held(spa_stages=(), threshold=0.1), held(spa_stages=(), threshold=0.9), "other.onnx")
    with pytest.raises(InputError, match=r"another threshold than the reference \(0\.9 against 0\.1\)"):
        check_same_threshold(held(threshold=0.1), held(threshold=0.9), "other.onnx")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spa_stages": ()}, r"another spa_stages than the reference \(\(\) against \(3, 4\)\)"),
        ({"depths": (2, 2, 4, 2)}, "another depths"),
        ({"window": 4}, r"another window than the reference \(4 against 7\)"),
        ({"selector": "topk"}, r"another selector than the reference \(topk against threshold\)"),
    ],
)
def test_models_of_one_name_that_are_made_otherwise_are_other_models(
    made: Exported, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        check_same_model(_held(made), _held(made, **changes), "other.onnx")


def test_what_changes_no_answer_makes_no_other_model(made: Exported) -> None:
    held = partial(_held, made)
    check_same_model(held(), held(keep_ratio=0.1, drop_path=0.3, gate_bias=0.0), "other.onnx")
    best = held(selector="topk", keep_ratio=0.1)
    with pytest.raises(InputError, match=r"another keep_ratio than the reference \(0\.2 against 0\.1\)"):
        check_same_model(best, held(selector="topk", keep_ratio=0.2), "other.onnx")
    detector = replace(held(), model=replace(held().model, task="detect"))
    with pytest.raises(InputError, match=r"another top_k than the reference \(7 against 300\)"):
        check_same_model(detector, replace(detector, model=replace(detector.model, top_k=7)), "other.onnx")


def _held(made: Exported, **changes: Any) -> ModelFacts:
    facts = load_checkpoint(made.checkpoint).facts
    return replace(facts, model=replace(facts.model, backbone=replace(facts.model.backbone, **changes)))


def test_a_folder_without_a_readable_image_is_an_error(made: Exported, tmp_path: Path) -> None:
    preprocessing = load_checkpoint(made.checkpoint).facts.preprocessing
    with pytest.raises(InputError, match="there is no folder"):
        next(folder_cases(tmp_path / "none", preprocessing, 8, 4))
    with pytest.raises(InputError, match="has no images"):
        next(folder_cases(tmp_path, preprocessing, 8, 4))
    (tmp_path / "a.png").write_text("no image", encoding="utf-8")
    with pytest.raises(InputError, match="no image that can be decoded"):
        next(folder_cases(tmp_path, preprocessing, 8, 4))


def test_images_that_cannot_be_read_are_left_out_up_to_the_share_that_training_allows(
    made: Exported, tmp_path: Path
) -> None:
    preprocessing = load_checkpoint(made.checkpoint).facts.preprocessing
    for number in range(5):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((20, 20, 3), dtype=np.uint8))
    (tmp_path / "1.png").write_text("no image", encoding="utf-8")
    heard: list[str] = []
    cases = list(folder_cases(tmp_path, preprocessing, 8, 2, heard.append))
    assert [(case.name, len(case.images)) for case in cases] == [("images 1-2", 2), ("images 3-4", 2)]
    assert [said.startswith(f"left out: {tmp_path / '1.png'} is no image") for said in heard] == [True]
    (tmp_path / "3.png").write_text("no image", encoding="utf-8")
    with pytest.raises(InputError, match=r"2 of 5 images cannot be read, more than the 5% .*3\.png is no image"):
        list(folder_cases(tmp_path, preprocessing, 8, 2))


def test_a_thousand_class_names_do_not_fill_the_sentence(made: Exported) -> None:
    facts = load_checkpoint(made.checkpoint).facts
    many = replace(facts, model=replace(facts.model, class_names=tuple(f"class {i}" for i in range(1000))))
    with pytest.raises(InputError, match="another list of classes") as caught:
        check_same_model(facts, many, "other.onnx")
    assert len(str(caught.value)) < 400
