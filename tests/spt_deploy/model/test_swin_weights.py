from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spt_deploy.config import BackboneConfig, ModelConfig, Task
from spt_deploy.errors import ArtefactError
from spt_deploy.model.network import SptModel
from spt_deploy.model.swin_keys import rename
from spt_deploy.model.swin_weights import FitReport, class_count, fit_swin_weights, looks_like
from tests.spt_deploy.model.models import CLASSES, make_model
from tests.spt_deploy.model.swin_schemes import SCHEMES, hugging_face_swin, written_as
from tests.tolerances import MODEL, assert_close

PREFIXES = {
    "official": ("", "module.", "backbone.", "module.backbone."),
    "timm": ("", "model.", "encoder."),
    "hugging face, in files": ("", "module."),
    "hugging face, in memory": ("",),
}


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, Tensor]]:
    """One swin_micro under every scheme's names."""
    model = hugging_face_swin()
    return {scheme: written_as(scheme, model) for scheme in SCHEMES}


def config(name: str = "swin_micro", task: Task = "classify", **backbone: object) -> ModelConfig:
    return ModelConfig(BackboneConfig.from_name(name, **backbone), task, CLASSES)


def fit(state: dict[str, object], of: ModelConfig) -> tuple[dict[str, Tensor], FitReport]:
    return fit_swin_weights(rename(state, "weights.pth"), of)


def remarks(report: FitReport) -> set[str]:
    """Which lists of a report hold anything."""
    return {name for name, value in report.to_dict().items() if value and name not in ("scheme", "taken")}


@pytest.mark.parametrize(
    ("scheme", "prefix"), [(scheme, prefix) for scheme, prefixes in PREFIXES.items() for prefix in prefixes]
)
def test_every_scheme_and_prefix_gives_the_same_weights_and_nothing_is_left_over(
    written: dict[str, dict[str, Tensor]], scheme: str, prefix: str
) -> None:
    expected, _ = fit(written["hugging face, in memory"], config())
    named = rename({prefix + name: tensor for name, tensor in written[scheme].items()}, "weights.pth")
    weights, report = fit_swin_weights(named, config())
    assert report.scheme == scheme.split(",")[0]
    assert remarks(report) == set()
    assert looks_like(named) == "swin_micro"
    assert class_count(named) == len(CLASSES)
    assert weights.keys() == expected.keys() == SptModel(config()).state_dict().keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_hugging_face_names_without_the_swin_prefix_are_understood(written: dict[str, dict[str, Tensor]]) -> None:
    for scheme in ("hugging face, in files", "hugging face, in memory"):
        state = {k.removeprefix("swin."): v for k, v in written[scheme].items() if not k.startswith("classifier")}
        _, report = fit(state, config())
        assert report.missing == ("head.fc.weight", "head.fc.bias")
        assert report.has_fresh_head
        assert not report.unexpected


@pytest.mark.parametrize("beside", [81.2, torch.tensor(81.2)])  # PyTorch's ImageNet example keeps a tensor there
@pytest.mark.parametrize("nest", ["model", "state_dict", "weights"])
def test_weights_are_found_where_training_code_nests_them(
    written: dict[str, dict[str, Tensor]], nest: str, beside: object
) -> None:
    optimizer = {"state": {0: {"step": torch.ones(())}}}
    content = {"epoch": 3, "best_acc1": beside, nest: written["official"], "optimizer": optimizer}
    assert not fit(content, config())[1].missing


def test_half_precision_files_become_float32(written: dict[str, dict[str, Tensor]]) -> None:
    weights, _ = fit({name: tensor.half() for name, tensor in written["timm"].items()}, config())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_swin_for_an_spt_lacks_the_gates_and_nothing_else(written: dict[str, dict[str, Tensor]]) -> None:
    weights, report = fit(written["official"], config("spt_micro"))
    model = SptModel(config("spt_micro"))
    assert set(report.gates) == {name for name in model.state_dict() if ".gate." in name}
    assert len(report.gates) == 2 * (4 + 1)  # weight and bias of four SPA blocks and of the gate before them
    assert remarks(report) == {"gates"}
    assert not report.has_fresh_head
    model.load_state_dict(weights, strict=False)


def test_our_own_weights_come_back_gates_included() -> None:
    model = make_model()
    weights, report = fit(model.state_dict(), config("spt_micro"))
    assert report.scheme == "spt-deploy"
    assert remarks(report) == set()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    named = rename({"format": "spt-deploy/1", "weights": model.state_dict()}, "ckpt.pt")
    assert looks_like(named) == "spt_micro"
    assert fit_swin_weights(named, config("swin_micro"))[1].unexpected == tuple(
        sorted(name for name in model.state_dict() if ".gate." in name)
    )


def test_what_is_missing_unexpected_or_of_another_shape_is_listed(written: dict[str, dict[str, Tensor]]) -> None:
    state = dict(written["timm"])
    del state["layers.1.blocks.0.norm1.weight"]
    state["head.fc.weight"], state["head.fc.bias"] = torch.zeros(7, 256), torch.zeros(7)
    state["decoder.weight"] = torch.zeros(3)
    state["layers.0.blocks.0.attn.lora"] = torch.zeros(3)
    weights, report = fit(state, config())
    assert report.missing == ("backbone.stages.1.blocks.0.norm1.weight",)
    assert report.unexpected == ("decoder.weight", "layers.0.blocks.0.attn.lora")
    assert report.other_shape == (("head.fc.bias", (7,), (5,)), ("head.fc.weight", (7, 256), (5, 256)))
    assert report.has_fresh_head
    assert set(weights) == set(report.taken)
    assert len(report.taken) == len(SptModel(config()).state_dict()) - 3


def test_query_without_key_and_value_is_listed_as_unexpected(written: dict[str, dict[str, Tensor]]) -> None:
    state = dict(written["hugging face, in files"])
    block = "swin.encoder.layers.2.blocks.1.attention.self"
    del state[f"{block}.key.weight"]
    _, report = fit(state, config())
    assert report.missing == ("backbone.stages.2.blocks.1.attn.qkv.weight",)
    assert report.unexpected == (f"{block}.query.weight", f"{block}.value.weight")


def test_detection_checkpoints_give_the_norms_of_the_stages(written: dict[str, dict[str, Tensor]]) -> None:
    state = {f"backbone.{k}": v for k, v in written["official"].items() if not k.startswith(("norm.", "head."))}
    for i in range(4):
        state[f"backbone.norm{i}.weight"] = torch.full((32 * 2**i,), float(i))
        state[f"backbone.norm{i}.bias"] = torch.zeros(32 * 2**i)
    state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(81, 1024)
    weights, report = fit({"meta": {}, "state_dict": state}, config(task="detect"))
    assert [weights[f"head.norms.{i}.weight"].unique().tolist() for i in range(3)] == [[1], [2], [3]]
    assert report.unexpected == ("backbone.norm0.bias", "backbone.norm0.weight", "roi_head.bbox_head.fc_cls.weight")
    assert report.has_fresh_head
    assert all(name.startswith("head.") for name in report.missing)


def test_relative_position_tables_of_another_window_are_resized(written: dict[str, dict[str, Tensor]]) -> None:
    weights, report = fit(written["official"], config(window=5))
    assert len(report.resized) == 8
    assert not report.other_shape
    for name in report.resized:
        assert weights[name].shape == (81, SptModel(config()).state_dict()[name].shape[1])
    # A table that grows with the row and is odd about its middle stays so.
    rows = torch.linspace(-6, 6, 13).repeat_interleave(13)[:, None]
    state = dict(written["official"])
    state["layers.0.blocks.0.attn.relative_position_bias_table"] = rows
    table = fit(state, config(window=5))[0]["backbone.stages.0.blocks.0.attn.relative_position_bias_table"].view(9, 9)
    assert_close(table, table[:, :1].expand(9, 9))
    assert_close(table, -table.flip(0), MODEL)
    assert (table.diff(dim=0) > 0).all()


@pytest.mark.parametrize("rows", [13 * 15, 14 * 14, 0])
def test_a_table_of_no_window_is_of_another_shape(written: dict[str, dict[str, Tensor]], rows: int) -> None:
    state = dict(written["official"])
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[name] = torch.zeros(rows, 1)
    _, report = fit(state, config())
    assert report.other_shape == ((f"backbone.{name.replace('layers', 'stages')}", (rows, 1), (169, 1)),)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda t: t.to(torch.int8),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.complex64),
        lambda t: t.to_sparse(),
        lambda t: t.sum(),
    ],
    ids=["integers", "float8", "complex", "sparse", "scalar"],
)
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "head.weight", "layers.2.blocks.1.attn.qkv.weight"])
def test_a_weight_that_is_no_plain_numbers_is_named(
    written: dict[str, dict[str, Tensor]], name: str, spoilt: Callable[[Tensor], Tensor]
) -> None:
    state = dict(written["official"])
    state[name] = spoilt(state[name])
    with pytest.raises(ArtefactError, match=f"{name} is no dense tensor of floating-point numbers"):
        rename(state, "weights.pth")


def test_query_key_and_value_of_other_widths_are_unexpected(written: dict[str, dict[str, Tensor]]) -> None:
    state = dict(written["hugging face, in memory"])
    key = "swin.encoder.layers.0.blocks.0.attention.k_proj.weight"
    state[key] = state[key][:, :16]
    _, report = fit(state, config())
    assert report.missing == ("backbone.stages.0.blocks.0.attn.qkv.weight",)
    assert {name.rsplit(".", 2)[1] for name in report.unexpected} == {"q_proj", "k_proj", "v_proj"}


def test_what_is_not_named_by_text_is_passed_over(written: dict[str, dict[str, Tensor]]) -> None:
    assert not fit({0: torch.zeros(2), **written["official"]}, config())[1].missing  # type: ignore[dict-item]


def _swin(embed_dim: int, depths: tuple[int, ...]) -> dict[str, Tensor]:
    """Just enough of an official file to tell the architecture by."""
    blocks = {f"layers.{i}.blocks.{depth - 1}.norm1.weight": torch.ones(1) for i, depth in enumerate(depths)}
    return {"patch_embed.proj.weight": torch.zeros(embed_dim, 3, 4, 4), **blocks}


@pytest.mark.parametrize(
    ("asked", "embed_dim", "depths", "message"),
    [
        ("spt_t", 128, (2, 2, 18, 2), r"swin_b \(embed_dim 128, depths 2, 2, 18, 2\), not spt_t; try --model spt_b"),
        ("swin_b", 96, (2, 2, 6, 2), r"look like swin_t \(.*\), not swin_b; try --model swin_t"),
        ("spt_s", 96, (2, 2, 6, 2), r"look like swin_t \(.*\), not spt_s; try --model spt_t"),
        ("spt_t", 192, (2, 2, 18, 2), r"like no model known here \(embed_dim 192, depths 2, 2, 18, 2\); known are"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_by_name(
    asked: str, embed_dim: int, depths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        fit(_swin(embed_dim, depths), config(asked))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "weights.pth holds no weights"),
        ({"epoch": 3, "model": {"name": "swin"}}, "weights.pth holds no weights"),
        ({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "no Swin weights .* conv1.weight, fc.bias"),
        (_swin(96, (2, 2, 6, 2)) | {"layers.0.blocks.0.attn.logit_scale": torch.zeros(1)}, "Swin V2"),
    ],
)  # fmt: skip
def test_what_is_no_swin_is_refused_in_one_sentence(content: dict[str, object], message: str) -> None:
    with pytest.raises(ArtefactError, match=message) as caught:
        rename(content, "weights.pth")
    assert not re.search(r"\n|\. [A-Z]", str(caught.value))
