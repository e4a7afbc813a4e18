"""The command group: names, laziness, and what becomes of errors."""

from __future__ import annotations

import errno
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

import spt_deploy
from spt_deploy import cli
from spt_deploy.errors import (
    ArtefactError,
    InputError,
    OutputError,
    ResultError,
    RuntimeMissingError,
    SptError,
    UsageError,
    add_note,
)

Run = Callable[..., Result]


@pytest.fixture
def run_raising(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``spt-deploy [OPTIONS] probe`` where probe raises the error given."""

    def run(error: BaseException | None, *options: str, arguments: tuple[str, ...] = ()) -> Result:
        module = ModuleType("probe_module")

        @click.command("probe")
        @click.option("--number", type=int)
        def command(number: int | None) -> None:
            click.echo("a result")
            if error is not None:
                raise error

        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_module", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_module", "Raise."))
        return CliRunner().invoke(cli.main, [*options, "probe", *arguments])

    return run


def test_help_lists_every_command_of_the_table() -> None:
    result = CliRunner().invoke(cli.main, ["-h"])
    assert result.exit_code == 0
    for name, (_, help_line) in cli.COMMANDS.items():
        assert name in result.output
        assert help_line in result.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_and_errors_call_a_command_as_the_user_does(name: str) -> None:
    usage = CliRunner().invoke(cli.main, [name, "--help"]).output.splitlines()[0]
    assert usage.startswith(f"Usage: spt-deploy {name} [OPTIONS]")
    wrong = CliRunner().invoke(cli.main, [name, "--no-such-option"])
    assert f"see 'spt-deploy {name} --help'" in wrong.output


def test_version_is_the_packages() -> None:
    assert spt_deploy.__version__ in CliRunner().invoke(cli.main, ["--version"]).output


def test_a_command_without_error_prints_to_stdout_and_exits_0(run_raising: Run) -> None:
    result = run_raising(None)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a result\n", "")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ResultError("parity failed"), 1),
        (UsageError("value is 3"), 2),
        (ArtefactError("x.onnx is not ours"), 2),
        (OutputError("disk full"), 2),
        (RuntimeMissingError("no onnxruntime"), 3),
    ],
)
def test_an_error_of_ours_is_its_sentence_and_its_exit_code(run_raising: Run, error: SptError, exit_code: int) -> None:
    result = run_raising(error)
    assert result.exit_code == exit_code
    assert result.stderr == f"error: {error}\n"


@pytest.mark.parametrize("arguments", [("--number", "x"), ("--nonsense",), ("more",)])
def test_wrong_usage_of_a_command_is_one_sentence_that_points_to_its_help(
    run_raising: Run, arguments: tuple[str, ...]
) -> None:
    result = run_raising(None, arguments=arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("; see 'spt-deploy probe --help'\n")
    assert result.stderr.count("\n") == 1


def test_wrong_usage_of_the_group_is_one_sentence() -> None:
    for arguments in (["--nonsense"], ["no-such-command"]):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.stderr
        assert result.stderr.count("\n") == 1


def test_an_unknown_command_is_answered_with_the_known_ones() -> None:
    result = CliRunner().invoke(cli.main, ["exprot"])
    assert all(name in result.stderr for name in cli.COMMANDS)


def test_no_command_at_all_shows_the_help() -> None:
    result = CliRunner().invoke(cli.main, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere_is_a_sentence_that_names_the_file(run_raising: Run, code: int) -> None:
    result = run_raising(OSError(code, "No space left on device", "out/predictions.jsonl"))
    assert result.exit_code == OutputError.exit_code
    assert "disk full" in result.stderr
    assert "out/predictions.jsonl" in result.stderr


def test_a_missing_permission_anywhere_is_a_sentence_that_names_the_file(run_raising: Run) -> None:
    result = run_raising(PermissionError(errno.EACCES, "Permission denied", "locked/model.onnx"))
    assert result.exit_code == InputError.exit_code
    assert result.stderr.startswith("error: locked/model.onnx cannot be opened: Permission denied; ")


def test_an_opencv_that_finds_no_desktop_libraries_is_answered_with_its_headless_twin(run_raising: Run) -> None:
    result = run_raising(ImportError("libGL.so.1: cannot open shared object file", name="cv2"))
    assert result.exit_code == RuntimeMissingError.exit_code
    assert "libGL.so.1" in result.stderr
    assert result.stderr.endswith("pip install opencv-python-headless\n")


def test_a_package_that_is_missing_is_named_with_what_installs_it(run_raising: Run) -> None:
    result = run_raising(ModuleNotFoundError("No module named 'tensor.nn'", name="tensor.nn"))
    assert result.exit_code == RuntimeMissingError.exit_code
    assert result.stderr == "error: this needs tensor, which is not installed; pip install tensor\n"


def test_what_is_needed_with_torch_is_named_with_it(run_raising: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    missing = ("torch", "safetensors", "onnxscript")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    result = run_raising(ModuleNotFoundError("No module named 'safetensors'", name="safetensors"))
    assert result.stderr == (
        "error: this needs torch, safetensors and onnxscript, which are not installed; "
        "pip install torch safetensors onnxscript\n"
    )


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (MemoryError(), 1, "there is too little memory for this; smaller batches"),
        (RuntimeError("can't start new thread"), 1, "the system starts no more threads; raise the limits"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), 1, "Too many open files: .*ulimit -n"),
    ],
)
def test_a_limit_of_the_machine_is_a_sentence_that_says_which(
    run_raising: Run, error: Exception, exit_code: int, sentence: str
) -> None:
    result = run_raising(error)
    assert result.exit_code == exit_code
    assert re.match(f"error: {sentence}", result.stderr)
    assert "unexpected" not in result.stderr


def test_without_a_place_for_temporary_files_the_folders_that_were_tried_are_named(
    run_raising: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(FileNotFoundError) as nowhere:
        tempfile.gettempdir()
    result = run_raising(nowhere.value)
    assert result.exit_code == OutputError.exit_code
    folders = f"{tmp_path}/a, {tmp_path}/b"
    assert (
        result.stderr
        == f"error: no folder for temporary files can be written ({folders}); set TMPDIR to one that can\n"
    )


@pytest.mark.parametrize("name", ["spt_deploy.gone", "numpy.gone"])
def test_a_part_that_is_missing_of_what_is_there_is_no_package_to_install(run_raising: Run, name: str) -> None:
    error = ModuleNotFoundError(f"No module named '{name}'", name=name)
    assert run_raising(error).stderr.startswith(f"error: unexpected ModuleNotFoundError: No module named '{name}'")


def test_an_unexpected_error_is_named_in_one_line_without_a_traceback(run_raising: Run) -> None:
    result = run_raising(ValueError("two\nlines"))
    assert result.exit_code == 1
    assert result.stderr == "error: unexpected ValueError: two lines; run again with --debug for the traceback\n"


@pytest.mark.parametrize("error", [OutputError("disk full"), KeyboardInterrupt()])
def test_what_was_added_to_an_error_stands_below_it(run_raising: Run, error: BaseException) -> None:
    add_note(error, "ten lines are whole")
    add_note(error, "go on")
    above, *below = run_raising(error).stderr.splitlines()
    assert above.startswith("error: ")
    assert below == ["ten lines are whole", "go on"]


@pytest.mark.parametrize("error", [ValueError("bad"), ArtefactError("x.onnx is not ours")])
def test_debug_shows_the_traceback_above_the_sentence(run_raising: Run, error: Exception) -> None:
    result = run_raising(error, "--debug")
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_the_environment_asks_for_debug_as_well(run_raising: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPT_DEBUG", "1")
    assert "Traceback" in run_raising(ValueError("bad")).stderr


def test_ctrl_c_exits_130_with_a_sentence(run_raising: Run) -> None:
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted before the job was done\n"


def test_an_exit_code_that_a_command_chose_stays(run_raising: Run) -> None:
    result = run_raising(click.exceptions.Exit(1))
    assert (result.exit_code, result.stderr) == (1, "")
