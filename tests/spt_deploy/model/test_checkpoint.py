from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spt_deploy import __version__
from spt_deploy.digest import sha256_of
from spt_deploy.errors import ArtefactError, OutputError
from spt_deploy.model.checkpoint import load_checkpoint, load_weights_file, save_checkpoint
from spt_deploy.preprocess import Preprocessing
from tests.spt_deploy.model.models import images, make_model

PREPROCESSING = Preprocessing((96, 64), mode="letterbox", mean=(0.1, 0.2, 0.3))


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert not re.search(r"\n|\. [A-Z]", text), text
    return text


@pytest.mark.parametrize("task", ["classify", "multilabel", "detect"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@torch.no_grad()
def test_a_checkpoint_gives_back_the_same_model_and_facts(tmp_path: Path, suffix: str, task: Any) -> None:
    model = make_model(task=task, packing="per-image", threshold=0.02)
    path = tmp_path / f"ckpt{suffix}"
    save_checkpoint(path, model, PREPROCESSING)
    checkpoint = load_checkpoint(path)
    assert checkpoint.facts.model == model.config
    assert checkpoint.facts.preprocessing == PREPROCESSING
    assert checkpoint.facts.tool_version == __version__
    built = checkpoint.build()
    assert not built.training
    expected, actual = model(images(2, 64, 64)).named(), built(images(2, 64, 64)).named()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_training_state_comes_back_from_pt(tmp_path: Path) -> None:
    state = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}, "history": [0.1, 0.2], "best": None}
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_model(), PREPROCESSING, state)
    assert load_checkpoint(path).training == state


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_and_named(tmp_path: Path, suffix: str, bad: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("backbone.patch_embed.norm.bias")[1] = bad
    path = tmp_path / f"bad{suffix}"
    save_checkpoint(path, model, PREPROCESSING)
    with pytest.raises(ArtefactError, match=r"bad\.\w+: backbone\.patch_embed\.norm\.bias holds 1 values of") as error:
        load_checkpoint(path)
    one_sentence(error)


def test_sha256_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"")
    assert sha256_of(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("container", ["pickle", "torch", "legacy torch"])
def test_a_pickle_that_would_run_code_is_refused_and_the_code_does_not_run(tmp_path: Path, container: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"model": _Evil(marker)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "torch")
    with pytest.raises(ArtefactError, match="would have to run as code") as caught:
        load_checkpoint(path)
    assert "evil.pt" in one_sentence(caught)
    assert not marker.exists()


def _truncated(suffix: str, folder: Path) -> bytes:
    whole = folder / f"whole{suffix}"
    save_checkpoint(whole, make_model(), PREPROCESSING)
    content = whole.read_bytes()
    return content[: len(content) // 2]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("what", ["text", "empty", "truncated", "no zip of torch", "zeros"])
def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, what: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    if what == "truncated":
        path.write_bytes(_truncated(".safetensors" if suffix == ".safetensors" else ".pt", tmp_path))
    elif what == "no zip of torch":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("readme.txt", "hello")
        path.write_bytes(archive.getvalue())
    else:
        path.write_bytes({"text": b"this is no checkpoint\n", "empty": b"", "zeros": bytes(1000)}[what])
    with pytest.raises(ArtefactError, match=f"file{suffix}") as caught:
        load_checkpoint(path)
    one_sentence(caught)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04"]), rest=st.binary(max_size=40))
def test_any_bytes_are_refused_as_an_artefact(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "noise.pt"
    path.write_bytes(start + rest)
    with pytest.raises(ArtefactError):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.pt", "there is no file"), (tmp_path, "is a folder; give the file")):
        with pytest.raises(ArtefactError, match=message) as caught:
            load_checkpoint(path)
        one_sentence(caught)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a dict of weights"),
        ({"model": {"w": torch.zeros(2)}}, "was not written by spt-deploy; .* spt-deploy convert"),
        ({"format": torch.zeros(2)}, "was not written by spt-deploy"),
        ({"format": "spt-deploy/1"}, "model description that cannot be read"),
        ({"format": "spt-deploy/1", "facts": "FACTS"}, "holds no weights"),
        ({"format": "spt-deploy/1", "facts": "FACTS", "weights": {"a": torch.zeros(2)}}, "not fit the model spt_micro"),
        ({"format": "spt-deploy/1", "facts": "FACTS", "weights": [1]}, "holds no weights"),
    ],
)  # fmt: skip
def test_a_foreign_or_incomplete_checkpoint_is_refused_in_one_sentence(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "foreign.pt"
    if isinstance(content, dict) and content.get("facts") == "FACTS":
        save_checkpoint(path, make_model(), PREPROCESSING)
        content = content | {"facts": load_checkpoint(path).facts.to_dict()}
    torch.save(content, path)
    with pytest.raises(ArtefactError, match=message) as caught:
        load_checkpoint(path).build()
    one_sentence(caught)


def test_safetensors_of_other_tools_are_sent_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match="spt-deploy convert"):
        load_checkpoint(path)
    assert load_weights_file(path)[0].keys() == {"a"}


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "ckpt.pt").mkdir(parents=True)
    with pytest.raises(OutputError):
        save_checkpoint(folder / "ckpt.pt", make_model(), PREPROCESSING)
    assert [p.name for p in folder.iterdir()] == ["ckpt.pt"]
