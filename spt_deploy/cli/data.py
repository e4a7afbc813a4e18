"""``spt-deploy data``: data sets made from data sets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.console import progress, show, status
from spt_deploy.cli.options import FILE, json_option
from spt_deploy.wording import counted

if TYPE_CHECKING:
    from spt_deploy.workflows.sparse_data import SparseData
    from spt_deploy.workflows.split_data import SplitData

FORMAT_NAMES = ("coco", "yolo", "voc", "bdd", "folder")
UNSPLIT_NAMES = ("coco", "yolo", "voc", "labelme", "cvat", "folder")  # BDD is always split, the fourth and fifth never

format_option = click.option(
    "--format", type=click.Choice(FORMAT_NAMES), help="Format of SRC.  [default: by looking at the folder]"
)
broken_option = click.option(
    "--max-broken", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share that may be broken."
)


@click.group("data")
def command() -> None:
    """Make data sets from others: train and val of one without splits, and sparse ones, as in the paper."""


@command.command("split", short_help="Train and val of what an annotation tool exported.")
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("out", type=FILE)
@click.option(
    "--val", type=click.FloatRange(0, 1, True, True), default=0.2, show_default=True, help="Share of images for val."
)
@click.option("--last", is_flag=True, help="val gets the last images by name, as fits frames of a video.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw, without --last.")
@click.option("--format", type=click.Choice(UNSPLIT_NAMES), help="Format of SRC.  [default: by looking at the folder]")
@broken_option
@json_option
def split(
    source: Path,
    out: Path,
    val: float,
    last: bool,
    seed: int,
    format: str | None,
    max_broken: float,
    as_json: bool,
) -> None:
    """Split SRC, as an annotation tool exported it, into train and val, in the folder OUT.

    SRC is a folder of CLASS/ folders, of YOLO labels, of VOC's XML files, or of labelme's JSON files or with CVAT's
    annotations.xml (OUT is COCO JSON then), or a COCO JSON file. Images become hard links, or copies where those cannot
    be.
    """
    from spt_deploy.training.report import Reports
    from spt_deploy.workflows.split_data import make_splits

    reports = Reports(status, progress)
    made = make_splits(source, out, val, last=last, seed=seed, format=format, max_broken=max_broken, reports=reports)
    _print_splits(made, as_json)


@command.command("sparse", short_help="The images with few pixels in objects.")
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("out", type=FILE)
@click.option("--max-ratio", type=float, help="Largest share of pixels in objects.  [default: COCO 0.2, others 0.25]")
@format_option
@broken_option
@json_option
def sparse(
    source: Path, out: Path, max_ratio: float | None, format: str | None, max_broken: float, as_json: bool
) -> None:
    """Write the images of SRC with few pixels in objects to the folder OUT.

    Objects are outlines where SRC has them, else boxes. Images become hard links, or copies where those cannot be.
    """
    from spt_deploy.training.report import Reports
    from spt_deploy.workflows.sparse_data import make_sparse

    reports = Reports(status, progress)
    _print(make_sparse(source, out, max_ratio, format, max_broken=max_broken, reports=reports), as_json)


@command.command("pad", short_help="Every image in a black one twice as high and wide.")
@click.argument("source", metavar="SRC", type=FILE)
@click.argument("out", type=FILE)
@format_option
@broken_option
@json_option
def pad(source: Path, out: Path, format: str | None, max_broken: float, as_json: bool) -> None:
    """Write every image of SRC to OUT, in the upper left of a black image twice as high and wide.

    Boxes and outlines stay where they are; in an image folder without boxes, the image itself becomes the object.
    """
    from spt_deploy.training.report import Reports
    from spt_deploy.workflows.sparse_data import make_padded

    _print(make_padded(source, out, format, max_broken=max_broken, reports=Reports(status, progress)), as_json)


def _print(made: SparseData, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    if made.broken:
        status(f"{counted(len(made.broken), 'image or object was', 'images or objects were')} left out")
    for split, count in made.splits.items():
        if made.max_ratio is None:
            click.echo(f"{split}: {counted(count.kept, 'image')}")
            continue
        mean = "" if count.mean_ratio is None else f", {100 * count.mean_ratio:.1f} % in the mean"
        click.echo(
            f"{split}: {count.kept} of {count.images} images have less than {100 * made.max_ratio:g} % of their pixels "
            f"in objects{mean}; {count.without_objects} of them hold no object"
        )
        width = len(str(max(count.histogram)))
        for index, images in enumerate(count.histogram):
            bar = "#" * round(40 * images / max(1, *count.histogram))
            click.echo(f"  {f'{10 * index}-{10 * index + 10} %':>8}  {images:{width}}  {bar}".rstrip())
    click.echo(f"{made.out}: {made.format}")


def _print_splits(made: SplitData, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    parts = list(made.splits.items())
    table = Table("", *(name for name, _ in parts))
    table.add_row("images", *(str(part.images) for _, part in parts))
    if all(part.objects is not None for _, part in parts):
        table.add_row("objects", *(str(part.objects) for _, part in parts))
    for name in parts[0][1].classes:
        table.add_row(f"  {escape(name)}", *(str(part.classes[name]) for _, part in parts))
    show(table)
    task = "" if made.format == "folder" else " --task detect"
    click.echo(f"{made.out}: {made.format}; next: spt-deploy train {shlex.quote(str(made.out))}{task}")
