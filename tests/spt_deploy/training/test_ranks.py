"""Two processes train as one: same gradients, same weights, same metrics, one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spt_deploy.datasets.formats import read_data
from spt_deploy.interrupt import StopRequest
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.gradient import StepWeights
from spt_deploy.training.loader import EpochBatches, Loader
from spt_deploy.training.loop import Trainer
from spt_deploy.training.ranks import Ranks, is_main_process
from spt_deploy.training.report import Reports
from spt_deploy.training.samples import Samples
from spt_deploy.training.tasks import make_task
from tests.spt_deploy.training.random_batches import batch_of, losses_of, model_without_noise
from tests.spt_deploy.training.rank_worker import ALPHA, STEPS
from tests.spt_deploy.training.support import make_image_folder, tiny_config

ROOT = Path(__file__).parents[3]
BROKEN = ("val/blue/000.png", "val/green/003.png", "val/red/001.png")  # in batches of process 0, 1 and 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they found."""
    out = tmp_path_factory.mktemp("two")
    data = make_image_folder(out / "data")
    broken = make_image_folder(out / "broken")
    for name in BROKEN:
        (broken / name).write_bytes(b"no image")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "tests.spt_deploy.training.rank_worker", str(data), str(out)]
    process = subprocess.Popen(
        [*launch, *worker], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: torchrun then ends its processes, too
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return out


def load(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("name", STEPS)
def test_the_gradient_is_that_of_one_process_with_all_images(two: Path, name: str) -> None:
    gate_bias, of_rank = STEPS[name]
    numbers = [n for batches in of_rank for batch in batches for n in batch]
    batch = batch_of(range(len(numbers)))
    model = model_without_noise(gate_bias)
    _, task, select = losses_of(model)(batch)
    StepWeights(len(numbers), int(batch.has_mask.sum()), world=1).loss(batch, task, select, ALPHA).backward()
    one, other = (load(two / f"{name}-{rank}.pt") for rank in (0, 1))
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(one[parameter_name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(one[parameter_name], other[parameter_name])


def test_all_processes_end_with_the_same_weights(two: Path) -> None:
    one, other = (load(two / f"weights-straight-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_signal_to_one_process_stops_all_and_resuming_ends_as_if_it_had_not(two: Path) -> None:
    one, other = (load_checkpoint(two / run / "last.pt") for run in ("straight", "resumed"))
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert len(one.training["random"]) == 2


def test_metrics_are_exactly_those_of_one_process(two: Path) -> None:
    config = tiny_config(two / "data", two / "straight")
    checkpoint = load_checkpoint(two / "straight/last.pt")
    data, preprocessing = read_data(config.data, "classify"), checkpoint.facts.preprocessing
    loaders = [Loader(Samples(records, preprocessing, classes=3), config.batch) for records in (data.train, data.val)]
    trainer = Trainer(
        config,
        checkpoint.build(),
        make_task(config, data),
        *loaders,
        torch.device("cpu"),
        alpha=config.alpha,
        reports=Reports(),
        stop=StopRequest(),
    )
    lines = (two / "straight/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = json.loads(lines[-1])["val"]
    assert trainer.evaluate() == {name: value for name, value in record.items() if name != "seconds"}


def test_the_main_process_names_and_reports_what_others_could_not_read(two: Path) -> None:
    said = (two / "said-0.txt").read_text(encoding="utf-8")
    assert [said.count(f"left out: {two / 'broken' / name} ") for name in BROKEN] == [1, 1, 1]
    assert "3 unreadable images" in (two / "lenient/report.md").read_text(encoding="utf-8")
    assert (two / "said-1.txt").read_text(encoding="utf-8") == ""


def test_the_share_that_may_be_broken_is_that_of_all_processes_together(two: Path) -> None:
    for rank in (0, 1):
        assert "3 of 18 images cannot be read" in (two / f"strict-{rank}.txt").read_text(encoding="utf-8")


def test_a_process_that_fails_ends_the_others_with_one_sentence(two: Path) -> None:
    assert (two / "error-1.txt").read_text(encoding="utf-8") == "the disk of process 1 is gone"
    assert "process 0 stops because another process" in (two / "error-0.txt").read_text(encoding="utf-8")


def test_the_threads_of_the_connections_end_before_the_interpreter(two: Path) -> None:
    assert [(two / f"threads-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)] == ["ended", "ended"]


@pytest.mark.parametrize(("count", "batch", "world"), [(36, 8, 2), (21, 4, 3), (5, 8, 4), (16, 4, 2), (1, 1, 3)])
def test_every_sample_goes_to_one_process_in_the_batches_of_a_single_one(count: int, batch: int, world: int) -> None:
    alone = list(EpochBatches(count, batch, shuffle_seed=1))
    shares = [list(EpochBatches(count, batch, shuffle_seed=1, rank=r, world=world)) for r in range(world)]
    assert len({len(share) for share in shares}) == 1  # as many rounds for each
    assert len(shares[0]) == len(EpochBatches(count, batch, 1, 0, world))
    dealt = [part for rounds in zip(*shares, strict=True) for part in rounds]
    assert [part for part in dealt if part] == alone
    assert sorted(key.place for part in dealt for key in part) == list(range(count))


def test_a_process_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks().sum([1.0, 2.0]) == [1.0, 2.0]
    assert Ranks().gather("x") == ["x"]
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
