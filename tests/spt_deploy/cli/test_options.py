"""Shared option types."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from spt_deploy.cli import main
from spt_deploy.cli.options import image_size_option


@click.command()
@image_size_option
def show(imgsz: tuple[int, int] | None) -> None:
    click.echo(repr(imgsz))


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("800x1280", (800, 1280)), ("32X64", (32, 64))])
def test_an_image_size_is_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert CliRunner().invoke(show, ["--imgsz", text]).output == f"{size}\n"


def test_no_image_size_is_none() -> None:
    assert CliRunner().invoke(show, []).output == "None\n"


@pytest.mark.parametrize("text", ["10", "224x", "x", "1.5", "-64", "64x64x64", "²2", "32 x"])
def test_what_is_no_image_size_is_wrong_usage(text: str) -> None:
    result = CliRunner().invoke(show, [f"--imgsz={text}"])
    assert result.exit_code == 2
    assert "image size" in result.output


@pytest.mark.parametrize(
    "arguments",
    [["infer", "v.mp4", "--out", ""], ["export", ""], ["train", ""], ["validate", "a.onnx", "--data", ""]],
    ids=lambda arguments: arguments[0],
)
def test_an_empty_name_is_not_the_current_folder(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "the name is empty; name a file or a folder" in result.output
