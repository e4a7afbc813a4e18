"""``spt-deploy train``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from spt_deploy.cli import INTERRUPTED
from spt_deploy.cli.console import progress, status
from spt_deploy.cli.options import FILE, IMAGE_SIZE, device_option
from spt_deploy.config import MODEL_NAMES, TASKS
from spt_deploy.errors import UsageError
from spt_deploy.wording import counted

if TYPE_CHECKING:
    from spt_deploy.workflows.train import TrainResult


@click.command("train")
@click.argument("data", type=FILE, required=False)
@click.option("--task", type=click.Choice(TASKS), default="classify", show_default=True, help="What to learn.")
@click.option("--format", help="coco, yolo, voc, bdd or folder.  [default: by looking at the folder]")
@click.option("--model", type=click.Choice(MODEL_NAMES), default="spt_t", show_default=True, help="What to train.")
@click.option("--init", type=FILE, help="SPT checkpoint or Swin weights to start from.  [default: random weights]")
@click.option("--epochs", type=int, default=50, show_default=True, help="Passes over the training images.")
@click.option("--imgsz", type=IMAGE_SIZE, default="224", show_default=True, help="Input size: 224, or 800x1280.")
@click.option("--batch", type=int, default=32, show_default=True, help="Images a forward pass, of each process.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Forward passes a step.")
@click.option("--lr", type=float, default=5e-4, show_default=True, help="Highest learning rate.")
@click.option("--warmup", type=float, default=0.05, show_default=True, help="Share of the steps in which it rises.")
@click.option("--gate-lr-scale", type=float, default=10.0, show_default=True, help="How much faster the gates learn.")
@click.option(
    "--layer-decay",
    type=float,
    default=1.0,
    show_default=True,
    help="Learning rate of a stage over that of the stage after it; 0.7 to 0.9 keeps more of what --init knows.",
)
@click.option(
    "--freeze", type=int, default=0, show_default=True, help="Stages, from the first, that keep their weights."
)
@click.option(
    "--flip", type=float, default=0.5, show_default=True, help="Share of images mirrored; 0 for digits and text."
)
@click.option(
    "--mosaic",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of images put together with three others (detect).",
)
@click.option("--alpha", type=float, default=0.01, show_default=True, help="Weight of the select loss.")
@click.option("--threshold", type=float, default=0.01, show_default=True, help="Score above which a token is kept.")
@click.option("--select-from-labels", is_flag=True, help="Keep the tokens in objects, whatever the gates say.")
@click.option("--weight-decay", type=float, default=0.05, show_default=True, help="Of weight matrices.")
@click.option("--drop-path", type=float, help="Rate of stochastic depth in the last block.  [default: the model's own]")
@click.option("--label-smoothing", type=float, default=0.1, show_default=True, help="Share of the label spread out.")
@click.option("--clip", type=float, default=5.0, show_default=True, help="Largest norm of the gradient.")
@click.option(
    "--ema",
    type=float,
    default=0.999,
    show_default=True,
    help="Decay of the averaged weights, which are evaluated and saved; 0: none.",
)
@click.option("--compile", is_flag=True, help="torch.compile the MLPs and patch mergings; the start is slow.")
@click.option("--out", type=FILE, help="Folder of the run.  [default: runs/DATA-MODEL; with --resume the newest]")
@click.option("--resume", is_flag=True, help="Go on with a run exactly where its last whole epoch ended.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is in --out already.")
@device_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random; same seed, same run (CPU).")
@click.option("--workers", type=int, help="Processes that read images.  [default: by the device]")
@click.option(
    "--max-broken", type=float, default=0.05, show_default=True, help="Share of the images that may be broken."
)
@click.pass_context
def command(
    ctx: click.Context, /, data: Path | None, out: Path | None, resume: bool, overwrite: bool, **options: Any
) -> None:
    """Train an SPT on the data set in the folder DATA.

    COCO JSON, YOLO labels (DATA may be their data.yaml), Pascal VOC XML, BDD100K JSON (multilabel, detect) or an image
    folder (classify: DATA/train/CLASS/*.jpg, DATA/val/CLASS/*.jpg). From masks or boxes the gates learn what to keep;
    an image folder may have a boxes.txt in each class folder, a line an object: file name, x0, y0, x1, y1 in pixels,
    tab separated. Without, the select loss is off.

    The run's folder gets report.md, to be read first, best.pt and last.pt, curves.png, samples/, metrics.jsonl and
    config.json. On several GPUs: torchrun --nproc-per-node 4 -m spt_deploy train DATA ...
    """
    from spt_deploy.training.claim import new_run_folder
    from spt_deploy.training.config import TrainConfig
    from spt_deploy.training.ranks import is_main_process
    from spt_deploy.training.report import Reports
    from spt_deploy.training.run_folder import newest_run_folder
    from spt_deploy.workflows.train import resumed_config, train

    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them")
    with ExitStack() as stack:
        if resume:
            given = {k: v for k, v in options.items() if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
            if out is None:
                out = newest_run_folder()
                if is_main_process():
                    status(f"going on with {out}: the newest run")
            config = resumed_config(out, given if data is None else given | {"data": data})
        elif data is None:
            raise UsageError("DATA is missing; name the folder of a data set")
        else:
            out = out or stack.enter_context(new_run_folder(data, options["model"]))
            config = TrainConfig(data=data, out=out, **options)
        result = train(config, resume=resume, overwrite=overwrite, reports=Reports(status, progress))
    if is_main_process():
        _print_result(result, config.epochs)
    if result.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def _print_result(result: TrainResult, epochs: int) -> None:
    from spt_deploy.training.ranks import resume_command

    if result.interrupted:
        status(f"stopped after {result.epochs} of {epochs} whole epochs")
        go_on = f"go on with: {resume_command(result.out)}"
        status(go_on if result.epochs else "no epoch was finished: there is nothing to go on from")
    if result.broken:
        status(f"{counted(len(result.broken), 'unreadable image was', 'unreadable images were')} left out")
    if result.best is None or result.record is None:
        return
    status(f"read this first: {result.out / 'report.md'}")
    val = result.record["val"]
    click.echo(f"{result.best}: {result.metric} {100 * val[result.metric]:.1f} % (epoch {result.record['epoch']})")
    if val["select_ratio"]:
        ratios = ", ".join(f"{block} {100 * ratio:.1f} %" for block, ratio in val["select_ratio"].items())
        click.echo(f"tokens kept by block: {ratios}")
    if val["object_ratio"]:
        ratios = ", ".join(f"{stride} {100 * ratio:.1f} %" for stride, ratio in val["object_ratio"].items())
        click.echo(f"tokens in objects: {ratios}")
