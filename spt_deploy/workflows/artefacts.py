"""Which model a command means when it is given none: the newest artefact here, best kind first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from spt_deploy.engine.library import has_gpu
from spt_deploy.errors import InputError, UsageError

Kind = Literal["engine", "onnx", "checkpoint"]
KINDS: tuple[Kind, ...] = ("engine", "onnx", "checkpoint")  # best first
RUNS = Path("runs")
# Never what a command means that is given no name: build-engine writes the first two on its way to an engine, an int8
# file answers a little differently, which somebody must want, and an inlined one is for other programs.
_NAMED_ONLY = (".fp16.onnx", ".bf16.onnx", ".int8.onnx", ".inline.onnx")


class _KindOfFile(NamedTuple):
    article: str
    name: str
    suffixes: tuple[str, ...]
    made_by: str


_ABOUT: dict[Kind, _KindOfFile] = {
    "engine": _KindOfFile("an", "engine", (".engine",), "spt-deploy build-engine"),
    "onnx": _KindOfFile("an", "ONNX file", (".onnx",), "spt-deploy export"),
    "checkpoint": _KindOfFile("a", "checkpoint", (".pt", ".safetensors"), "spt-deploy train or spt-deploy convert"),
}
_KIND_OF_SUFFIX = {suffix: kind for kind, about in _ABOUT.items() for suffix in about.suffixes}
_KIND_OF_SUFFIX[".pth"] = "checkpoint"  # as others call their weights; none of our commands writes it


class Found(NamedTuple):
    """The artefact a command works on.

    Attributes:
        path: of the file.
        why: a sentence for the user when the file was not named but found; empty when it was named.
    """

    path: Path
    why: str


def runnable_kinds() -> tuple[Kind, ...]:
    """The kinds that can run on this machine: an engine needs a GPU."""
    return KINDS if has_gpu() else KINDS[1:]


def find_runnable(given: Path | None) -> Found:
    """As ``find_artefact``, of the kinds that can run on this machine; a file that is named is taken as it is.

    Raises:
        InputError: see ``find_artefact``.
    """
    is_searched = given is None or given.is_dir()
    return find_artefact(given, runnable_kinds() if is_searched else KINDS)


def check_name(path: Path, kind: Kind) -> None:
    """Whether a file that is to be written would be known for what it is, and take no other kind's place.

    Raises:
        UsageError: when its suffix is not of that kind.
    """
    about = _ABOUT[kind]
    if path.suffix not in about.suffixes:
        raise UsageError(
            f"output is {path}; expected a name that ends in {' or '.join(about.suffixes)}, by which every command "
            f"knows {about.article} {about.name}"
        )


def find_artefact(given: Path | None, kinds: Sequence[Kind] = KINDS) -> Found:
    """The file that was ``given``, or the newest artefact in the working directory or anywhere under ``runs/``.

    A better kind beats a newer file. Of checkpoints in one folder ``best.pt`` stands for the run, which is as
    new as its newest checkpoint: ``last.pt`` is always a little newer than the one that is meant.

    Args:
        given: what the user named: a file, or a folder to look in; None to look here.
        kinds: what the command can use, best first.

    Raises:
        InputError: when ``given`` does not exist or is of another kind, or nothing of these kinds is found.
    """
    if given is not None and not given.exists():
        raise InputError(f"there is no file {given}; name {_any_of(kinds)} that exists")
    if given is not None and not given.is_dir():
        kind = _KIND_OF_SUFFIX.get(given.suffix)
        if kind is not None and kind not in kinds:
            raise InputError(
                f"{given} is {_any_of([kind])} by its name, and {_any_of(kinds)} is wanted; name one, or make it with "
                f"{_ABOUT[kinds[-1]].made_by}"
            )
        return Found(given, "")
    places = f"in {given}" if given else f"here or under {RUNS}/"
    files = list(given.rglob("*") if given else _here())
    for index, kind in enumerate(kinds):
        newest = _newest(files, _ABOUT[kind].suffixes)
        if newest:
            better = " and no ".join(_ABOUT[k].name for k in kinds[:index])
            missing = f"; no {better} was found" if better else ""
            return Found(newest, f"taking {newest}: the newest {_ABOUT[kind].name} {places}{missing}")
    looked_for = ", ".join(f"*{suffix}" for kind in kinds for suffix in _ABOUT[kind].suffixes)
    raise InputError(
        f"{'no model' if given else 'no model was named and none'} was found {places} (looked for {looked_for}); "
        f"name {_any_of(kinds)}, or make one with {_ABOUT[kinds[-1]].made_by}"
    )


def _any_of(kinds: Iterable[Kind]) -> str:
    return " or ".join(f"{_ABOUT[kind].article} {_ABOUT[kind].name}" for kind in kinds)


def _here() -> Iterator[Path]:
    yield from Path().glob("*")
    yield from RUNS.rglob("*")


def _newest(files: Iterable[Path], suffixes: tuple[str, ...]) -> Path | None:
    """The newest of the files with these suffixes; None when there is none."""
    times: dict[Path, float] = {}
    for path in files:
        # A hidden file is somebody's unfinished business: our own temporary names look like that.
        is_meant = not path.name.startswith(".") and not path.name.endswith(_NAMED_ONLY)
        if path.suffix in suffixes and is_meant and path.is_file():
            times[path] = path.stat().st_mtime
    for path in [p for p in times if p.name == "last.pt"]:
        best = path.with_name("best.pt")
        if best in times:
            times[best] = max(times[best], times.pop(path))
    # The path as second key: files of one clock tick come in the same order every time.
    return max(times, key=lambda path: (times[path], str(path)), default=None)
