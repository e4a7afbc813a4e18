"""The capacity that is proposed has room for what images keep, and no more than whole containers ask for."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from spt_deploy.cli import main
from spt_deploy.config import BackboneConfig
from spt_deploy.runtimes import open_runner
from spt_deploy.workflows.capacity import least_capacity
from tests.exported import make_exported

SIZE = (112, 160)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), min_size=1, max_size=4))
def test_the_least_capacity_has_room_and_a_hundredth_less_has_not(maps: list[tuple[int, float]]) -> None:
    backbone = BackboneConfig.from_name("spt_t", packing="static")
    tokens = [size for size, _ in maps]
    needed = [int(size * share) for size, share in maps]
    capacity = least_capacity(backbone, needed, tokens)

    def has_room(share: float) -> bool:
        tried = BackboneConfig.from_name("spt_t", packing="static", capacity=share)
        return all(tried.static_slots(size) >= count for count, size in zip(needed, tokens, strict=True))

    assert has_room(capacity)
    assert capacity == 0.01 or not has_room(capacity - 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(6):
        assert cv2.imwrite(str(folder / f"{index}.png"), random.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    return folder


def test_auto_takes_what_the_images_need_and_none_of_them_overflows(folder: Path, tmp_path: Path) -> None:
    made = make_exported(tmp_path, SIZE)
    arguments = ["export", str(made.checkpoint), "--packing", "static", "--data", str(folder), "--json"]
    proposed = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "half.onnx")])
    assert proposed.exit_code == 0, proposed.stderr
    document = json.loads(proposed.stdout)
    assert document["capacity"] == 0.5  # proposed, not taken
    assert document["need"]["images"] == 6
    taken = CliRunner().invoke(main, [*arguments, "--capacity", "auto"])
    assert taken.exit_code == 0, taken.stderr
    document = json.loads(taken.stdout)
    assert document["capacity"] == document["need"]["capacity"]
    with open_runner(tmp_path / "model.static.onnx", "onnxruntime", "cpu") as runner:
        preprocessing = runner.facts.preprocessing
        images = np.stack([preprocessing.apply(cv2.imread(str(path))) for path in sorted(folder.iterdir())])
        assert not runner.infer(images)["overflow"].any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--capacity", "0.5"], "add --packing static"),
        (["--packing", "static", "--capacity", "auto"], "--data"),
        (["--packing", "static", "--capacity", "half"], "expected a share such as 0.5, or auto"),
        (["--packing", "static", "--capacity", "1.5"], "capacity is 1.5"),
        (["--packing", "static", "--data", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_a_capacity_that_cannot_be_meant_is_refused(tmp_path: Path, options: list[str], match: str) -> None:
    made = make_exported(tmp_path, (64, 64))
    result = CliRunner().invoke(main, ["export", str(made.checkpoint), *options])
    assert (result.exit_code, match in result.stderr) == (2, True), result.stderr
