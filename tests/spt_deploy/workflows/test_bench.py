"""``spt-deploy bench`` on real models: what is run, at which share of kept tokens; never how fast."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.config import Task
from spt_deploy.errors import InputError, RuntimeMissingError, UsageError
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import ModelOutput, SptModel
from spt_deploy.preprocess import Preprocessing
from spt_deploy.runtimes import open_runner
from spt_deploy.runtimes.base import Arrays
from spt_deploy.runtimes.onnx_file import read_facts
from spt_deploy.runtimes.onnxruntime_batches import SessionsByBatch
from spt_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from spt_deploy.runtimes.registry import is_installed
from spt_deploy.workflows.bench import bench
from spt_deploy.workflows.bench_compare import ComparedRow, compare
from spt_deploy.workflows.bench_memory import main as main_of_memory
from spt_deploy.workflows.bench_memory import peak_memory
from spt_deploy.workflows.bench_training import training_step
from spt_deploy.workflows.bench_work import Inputs, folder_inputs
from tests.exported import Exported, make_exported
from tests.spt_deploy.model.models import make_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_exported(tmp_path_factory.mktemp("bench"), (64, 64))


def test_ratios_are_forced_on_models_with_spa_blocks_and_swin_stands_beside_them(
    made: Exported, tmp_path: Path
) -> None:
    swin = make_exported(tmp_path, (64, 64), name="swin_micro")
    report = bench([swin.onnx, made.onnx], runtimes=["onnxruntime"], batches=[2], ratios=[1, 0.25], rounds=2)
    assert [(row.timing.name, row.select_ratio) for row in report.rows] == [
        ("model.onnx (onnxruntime cpu fp32)", None),
        (f"{made.onnx} (onnxruntime cpu fp32), 100% kept", 1.0),
        (f"{made.onnx} (onnxruntime cpu fp32), 25% kept", 0.25),
    ]
    assert report.rows[2].gmacs < report.rows[1].gmacs
    assert report.rows[0].timing.speedup == 1


def test_an_artefact_or_a_ratio_that_is_named_again_runs_again(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.onnx.parent)
    path, name = Path(made.onnx.name), "model.onnx (onnxruntime cpu fp32)"
    report = bench([path, path, path], runtimes=["onnxruntime"], batches=[1], rounds=2)
    own = f"{name}, its own selection"
    assert [row.timing.name for row in report.rows] == [own, f"{own} #2", f"{own} #3"]
    report = bench([path], runtimes=["onnxruntime"], batches=[1], ratios=[0.5, 0.5], rounds=2)
    assert [row.timing.name for row in report.rows] == [f"{name}, 50% kept", f"{name}, 50% kept #2"]


def test_rounds_are_shared_out_among_repeats_that_open_everything_anew(
    made: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    enter = OnnxRuntimeRunner.__enter__
    monkeypatch.setattr(OnnxRuntimeRunner, "__enter__", lambda self: [opened.append(id(self)), enter(self)][1])
    said: list[str] = []
    report = bench([made.onnx], runtimes=["onnxruntime"], batches=[1, 2], ratios=[0.5], rounds=5, status=said.append)
    assert len(opened) == 3
    assert [row.timing.rounds for row in report.rows] == [5, 5]
    assert [line.split(", ", 1)[1] for line in said] == [
        f"{share}, repeat {number} of 3"
        for share, number in (("2 rounds", 1), ("2 rounds", 2), ("1 round", 3))
        for _ in range(2)
    ]
    bench([made.onnx], runtimes=["onnxruntime"], batches=[1], ratios=[0.5], rounds=2, repeats=1)
    assert len(opened) == 4
    with pytest.raises(UsageError, match="repeats is 0"):
        bench([made.onnx], repeats=0)


def test_images_of_a_folder_go_on_from_repeat_to_repeat(
    made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 64, 3), 50 * number, dtype=np.uint8))
    places: list[int] = []
    go_on = Inputs.next_round
    monkeypatch.setattr(Inputs, "next_round", lambda self: [places.append(self.place), go_on(self)][0])
    bench([made.onnx], runtimes=["onnxruntime"], batches=[1], data=tmp_path, rounds=3, repeats=3)
    assert places == [number % 5 for number in range(9)]  # two of three are for warming up


@pytest.mark.parametrize("ratios", [[], [0.25]], ids=["own selection", "forced"])
def test_a_file_that_takes_bytes_stands_beside_one_that_takes_numbers(
    made: Exported, tmp_path: Path, ratios: list[float]
) -> None:
    taken_as_bytes = make_exported(tmp_path, (64, 64), uint8_input=True)
    report = bench(
        [made.onnx, taken_as_bytes.onnx], runtimes=["onnxruntime"], batches=[2], ratios=ratios, rounds=2, profiled=True
    )
    numbers, bytes_ = report.rows
    assert numbers.select_ratio == pytest.approx(bytes_.select_ratio, abs=0.05)
    casts = [[part.nodes for part in row.profile if part.operator == "Cast"] for row in (numbers, bytes_)]
    assert sum(casts[1]) == sum(casts[0]) + 1


def test_a_file_that_does_not_say_what_it_keeps_is_timed_at_forced_shares_only(tmp_path: Path) -> None:
    silent = make_exported(tmp_path, (64, 64), selection="none").onnx
    with pytest.raises(InputError, match=r"model\.onnx does not say what it keeps, .* force shares with --ratio, or"):
        bench([silent], runtimes=["onnxruntime"], batches=[1], rounds=2)
    (row,) = bench([silent], runtimes=["onnxruntime"], batches=[1], ratios=[0.5], rounds=2).rows
    assert row.select_ratio == pytest.approx(0.5, abs=0.1)


def test_the_command_prints_one_json_document(made: Exported) -> None:
    result = CliRunner().invoke(main, ["bench", str(made.checkpoint), "--batch", "1", "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["machine"]["torch"].startswith("2.")
    (row,) = document["rows"]
    assert row["rounds"] == 2
    assert 0 < row["select_ratio"] < 1


def test_artefacts_of_different_sizes_are_not_compared(made: Exported, tmp_path: Path) -> None:
    other = make_exported(tmp_path, (32, 64))
    with pytest.raises(InputError, match="different sizes"):
        bench([made.checkpoint, other.checkpoint], rounds=2)


def test_values_out_of_range_are_refused(made: Exported) -> None:
    with pytest.raises(UsageError, match="ratios are"):
        bench([made.checkpoint], ratios=[1.5])
    with pytest.raises(UsageError, match="batches are none; expected positive numbers"):
        bench([made.onnx], batches=[])
    with pytest.raises(UsageError, match="batches are"):
        bench([made.checkpoint], batches=[0])
    result = CliRunner().invoke(main, ["bench", str(made.checkpoint), "--batch", "one"])
    assert result.exit_code == 2
    assert "expected numbers with commas" in result.stderr


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_training_times_a_step_of_each_checkpoint_at_forced_ratios(tmp_path: Path, task: Task) -> None:
    paths = []
    for name in ("swin_micro", "spt_micro"):
        paths.append(tmp_path / f"{name}.pt")
        save_checkpoint(paths[-1], make_model(name, task=task), Preprocessing.for_task(task, (64, 64)))
    report = bench(paths, batches=[2], ratios=[0.25], rounds=2, training=True)
    assert [(row.timing.name, row.select_ratio) for row in report.rows] == [
        ("swin_micro.pt (training, torch cpu)", None),
        ("spt_micro.pt (training, torch cpu), 25% kept", 0.25),
    ]
    assert report.rows[1].gmacs < report.rows[0].gmacs


@pytest.mark.parametrize("ratios", [[], [0.25]], ids=["own selection", "forced"])
def test_for_throughput_batches_run_at_the_same_time_where_a_runtime_has_lanes(
    made: Exported, ratios: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spt_deploy.runtimes.registry.usable_cores", lambda: 3)
    all_of_a_turn, main_thread = threading.Barrier(3, timeout=60), threading.main_thread()
    run, forward = SessionsByBatch.run, SptModel.forward

    def run_beside_others(self: SessionsByBatch, feeds: Arrays) -> Arrays:
        if threading.current_thread() is not main_thread:
            all_of_a_turn.wait()
        return run(self, feeds)

    def forward_alone(self: SptModel, *given: Any, **named: Any) -> ModelOutput:
        assert threading.current_thread() is main_thread
        return forward(self, *given, **named)

    monkeypatch.setattr(SessionsByBatch, "run", run_beside_others)
    monkeypatch.setattr(SptModel, "forward", forward_alone)
    files, runtimes = [made.checkpoint, made.onnx], ["torch", "onnxruntime"]
    report = bench(files, runtimes=runtimes, batches=[2], ratios=ratios, rounds=2, throughput=True)
    for row in report.rows:
        assert (row.batch, row.at_once) == (2, 3)
        assert row.timing.images_per_second == pytest.approx(6e3 / row.timing.median_ms)


def test_memory_for_throughput_is_that_of_all_lanes(
    made: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spt_deploy.runtimes.registry.usable_cores", lambda: 3)
    monkeypatch.setattr(sys, "argv", ["", str(made.onnx), "onnxruntime", "cpu", "2", "", "True"])
    all_lanes, infer = threading.Barrier(3, timeout=60), OnnxRuntimeRunner.infer
    monkeypatch.setattr(OnnxRuntimeRunner, "infer", lambda self, images: [all_lanes.wait(), infer(self, images)][1])
    main_of_memory()
    assert json.loads(capsys.readouterr().out) > 10


def test_throughput_goes_with_no_training_and_no_profile(made: Exported) -> None:
    with pytest.raises(UsageError, match="without memory, profile, precision and throughput"):
        bench([made.checkpoint], ratios=[0.5], training=True, throughput=True)
    with pytest.raises(UsageError, match="leave out --profile or --throughput"):
        bench([made.onnx], profiled=True, throughput=True)


def test_training_is_timed_of_checkpoints_at_forced_ratios_only(made: Exported) -> None:
    with pytest.raises(UsageError, match="name checkpoints only"):
        bench([made.onnx], ratios=[0.5], training=True)
    with pytest.raises(UsageError, match="name checkpoints only"):
        bench([made.onnx], training=True)
    with pytest.raises(UsageError, match="--ratio"):
        bench([made.checkpoint], training=True)


def test_a_step_of_training_changes_the_weights_and_drops_what_was_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "spt_micro.pt"
    save_checkpoint(path, make_model("spt_micro"), Preprocessing.for_task("classify", (64, 64)))
    step = training_step(path, 2, torch.device("cpu"))
    losses = [step.run([torch.ones(2, count, dtype=torch.bool) for count in step.tokens()]) for _ in range(30)]
    assert losses[-1] < losses[0]
    nothing = step.run([torch.zeros(2, count, dtype=torch.bool) for count in step.tokens()])
    assert nothing != pytest.approx(losses[-1])


def test_images_of_a_folder_are_run_batch_by_batch_and_their_selection_is_told(made: Exported, tmp_path: Path) -> None:
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
    report = bench([made.onnx], batches=[2], data=tmp_path, rounds=2)
    inputs = folder_inputs(tmp_path, read_facts(made.onnx).preprocessing, 2)
    assert [len(batch) for batch in inputs.batches] == [2, 2]  # the fifth fills no batch
    with open_runner(made.onnx, "onnxruntime") as runner:
        kept = np.mean([runner.infer(batch)["select_ratio"].mean() for batch in inputs.batches])
    assert report.rows[0].select_ratio == pytest.approx(kept)
    with pytest.raises(InputError, match="fewer than 6 images"):
        bench([made.onnx], batches=[6], data=tmp_path, rounds=2)


def test_memory_and_operators_on_demand(made: Exported) -> None:
    report = bench([made.onnx], batches=[1], ratios=[0.5], rounds=2, memory=True, profiled=True)
    for row in report.rows:
        assert row.memory_mib is not None
        assert row.memory_mib > 10
        assert sum(part.share for part in row.profile) == pytest.approx(1)
        assert [part.ms for part in row.profile] == sorted((part.ms for part in row.profile), reverse=True)
    names = {part.operator for part in report.rows[0].profile}
    assert {"NonZero", "Softmax"} <= names


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process says what it took itself")
def test_memory_is_that_of_the_other_process_however_large_this_one_is(made: Exported) -> None:
    large = np.ones(2**30 // 8)  # a process that is made has the peak of the one that makes it
    assert peak_memory(made.onnx, "onnxruntime", "cpu", 1) < large.nbytes / 2**20


def test_a_checkpoint_beside_a_file_has_no_profile_and_alone_is_refused_at_once(made: Exported) -> None:
    both, runtimes = [made.checkpoint, made.onnx], ["torch", "onnxruntime"]
    report = bench(both, runtimes=runtimes, batches=[1], ratios=[0.5], rounds=2, profiled=True)
    assert [bool(row.profile) for row in report.rows] == [False, True]
    with pytest.raises(UsageError, match="torch gives no profile here"):
        bench([made.checkpoint], batches=[1], ratios=[0.5], rounds=2, profiled=True)


def test_no_more_is_forced_on_static_packing_than_it_has_room_for(tmp_path: Path) -> None:
    made = make_exported(tmp_path, (224, 224), packing="static", capacity=0.25)
    report = bench([made.onnx], runtimes=["onnxruntime"], batches=[1], ratios=[1, 0.2], rounds=2)
    assert [row.timing.name.split(", ", 1)[1] for row in report.rows] == ["62% kept, for want of room", "20% kept"]
    assert report.rows[0].select_ratio == pytest.approx((0.25 + 0.25 + 1 + 1) / 4)  # a whole container in stage 4


def test_without_a_runtime_that_takes_the_file_it_is_said_which_to_install_or_to_name(
    made: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeMissingError, match=r"runs in onnxruntime, openvino; name one of them with --runtime$"):
        bench([made.onnx], runtimes=["torch"])
    monkeypatch.setattr("spt_deploy.workflows.bench_contenders.is_installed", lambda name: False)
    with pytest.raises(RuntimeMissingError, match=r"runs in onnxruntime, openvino; pip install openvino$"):
        bench([made.onnx])


def test_each_runtime_has_its_own_first(made: Exported, tmp_path: Path) -> None:
    swin = make_exported(tmp_path, (64, 64), name="swin_micro")
    report = bench([swin.onnx, made.onnx], batches=[1], rounds=2)
    first = {row.timing.name: row.timing.peer for row in report.rows}
    runtimes = ["onnxruntime", "openvino"] if is_installed("openvino") else ["onnxruntime"]
    assert len(first) == 2 * len(runtimes)  # two files of one name are told apart
    for name, peer in first.items():
        assert next(runtime in peer for runtime in runtimes if runtime in name)
        assert str(made.onnx) in name or name == peer


def test_two_runs_side_by_side(made: Exported, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(made.checkpoint), "--batch", "1,2", "--rounds", "2", "--json"])
    document = result.stdout.replace("model.pt", "model[old].pt")  # no markup
    before, after = json.loads(document), json.loads(document)
    after["machine"]["torch"] = "3.0"
    for row, factor in zip(after["rows"], (0.25, 1.0), strict=True):
        row["median_ms"] *= factor
        row["quartiles_ms"] = [value * factor for value in row["quartiles_ms"]]
    after["rows"].append(after["rows"][0] | {"batch": 64})
    paths = tmp_path / "before.json", tmp_path / "after.json"
    for path, document in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(document), encoding="utf-8")
    found = compare(*paths)
    assert [row.speedup for row in found.rows] == pytest.approx([4, 1])
    assert found.rows[1].verdict == "same"
    assert found.rows[1].speedup_range[0] <= 1 <= found.rows[1].speedup_range[1]
    assert found.differences == (f"torch was {before['machine']['torch']} and is 3.0",)
    assert found.only_after == (f"{before['rows'][0]['name']}, batch 64",)
    shown = CliRunner().invoke(main, ["bench", "compare", *map(str, paths)])
    assert shown.exit_code == 0
    assert "4.00" in shown.stdout
    assert "model[old].pt" in shown.stdout
    assert "torch was" in shown.stderr
    refused = CliRunner().invoke(main, ["bench", *map(str, paths)])
    assert refused.exit_code == 2
    assert refused.stderr.endswith(f"spt-deploy bench compare {paths[0]} {paths[1]}\n")


def test_runs_without_anything_in_common_are_told_whether_it_is_the_batch(tmp_path: Path) -> None:
    def write(name: str, *rows: tuple[str, int]) -> Path:
        of_rows = [{"name": each, "batch": size, "median_ms": 1, "quartiles_ms": [1, 1]} for each, size in rows]
        (tmp_path / name).write_text(json.dumps({"machine": {}, "rows": of_rows}), encoding="utf-8")
        return tmp_path / name

    def at_once(path: Path) -> Path:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["rows"] = [row | {"at_once": 2} for row in document["rows"]]
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    first = write("a.json", ("one", 1), ("one", 4))
    with pytest.raises(
        InputError, match=r"a\.json was measured at batch 1, 4 and .*b\.json at batch 2; bench both with"
    ):
        compare(first, write("b.json", ("one", 2), ("two", 2)))
    several = at_once(write("d.json", ("one", 4)))
    with pytest.raises(InputError, match=r"at batch 1, 4 and .* at batch 4 \(2 at a time\); .* none with --throughput"):
        compare(first, several)
    assert [(row.batch, row.at_once) for row in compare(several, several).rows] == [(4, 2)]
    with pytest.raises(InputError, match="no contender in common; bench the same artefacts"):
        compare(first, write("c.json", ("two", 1)))


def test_a_change_beyond_both_spreads_is_a_change() -> None:
    row = ComparedRow("a", 1, 1, 10.0, 8.0, 1.25, (1.1, 1.4))
    assert row.verdict == "faster"
    assert replace(row, speedup=0.8, speedup_range=(0.7, 0.9)).verdict == "slower"


ROW = '{"rows": [{"name": "a", "batch": 1, "median_ms": %s, "quartiles_ms": %s}], "machine": {}}'


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rows": [{}], "machine": {}}', ROW % ("1", "[1]"), ROW % ('"1"', '["1", "1"]')]
)
def test_what_is_no_benchmark_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    # Never "> a.json": what was named may be a model, and would be gone.
    with pytest.raises(InputError, match=r"a\.json is no benchmark; make one: .* > RUN\.json$"):
        compare(tmp_path / "a.json", tmp_path / "a.json")
