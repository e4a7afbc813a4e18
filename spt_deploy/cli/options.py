"""Arguments and options that more than one command takes, so that they read and behave alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spt_deploy.config import parse_image_size
from spt_deploy.errors import UsageError

if TYPE_CHECKING:
    _SizeType = click.ParamType[tuple[int, int]]
else:  # before 8.4 it is no generic class when it runs
    _SizeType = click.ParamType


class ImageSize(_SizeType):
    """``224`` or ``800x1280`` (height x width) as (height, width) in pixels."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse text; a default that is a size already stays as it is."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_image_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


IMAGE_SIZE = ImageSize()


class FileName(click.Path):
    """A path that is not empty, as ``"$OUT"`` is where nobody has set it: that would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as a `Path`."""
        if value == "":
            self.fail("the name is empty; name a file or a folder, . being this one", param, ctx)
        return super().convert(value, param, ctx)


# Whether a file is there is for the workflow to say: its sentence knows what the file is for.
FILE = FileName(path_type=Path)

model_argument = click.argument("model", type=FILE, required=False)
model_option = click.option("--model", type=FILE, help="Model to run.  [default: the newest here or under runs/]")
image_size_option = click.option("--imgsz", type=IMAGE_SIZE, help="Input size: 224, or 800x1280 (height x width).")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
precision_option = click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), help="What openvino computes in.  [default: the file's own]"
)
precisions_option = click.option(
    "--precision", default="", help="What openvino computes in; fp32,bf16 runs both.  [default: the file's own]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")

__all__ = [
    "FILE",
    "IMAGE_SIZE",
    "ImageSize",
    "device_option",
    "image_size_option",
    "json_option",
    "model_argument",
    "model_option",
    "precision_option",
    "precisions_option",
]
