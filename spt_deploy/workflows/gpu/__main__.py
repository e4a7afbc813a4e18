"""``python -m spt_deploy.workflows.gpu``: what ``make gpu-check`` runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from spt_deploy.atomic import write_json
from spt_deploy.errors import RuntimeMissingError, SptError

REPORT = "gpu-report.json"


@click.command("gpu-check", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help=f"Folder for {REPORT}.  [default: here]")
@click.option("--seconds", type=float, default=420.0, show_default=True, help="That it may take.")
@click.option("--quick", is_flag=True, help="Fewer sizes and repetitions.")
@click.option("--json", "as_json", is_flag=True, help=f"Print what {REPORT} holds in place of the tables.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cpu only proves that the check itself runs, at toy sizes.",
)
def main(out: Path, seconds: float, quick: bool, as_json: bool, device: str) -> None:
    """Run all GPU tests, the kernels' numerics and benchmarks; print tables, and write them as JSON.

    Exit code 0 when everything is right, 1 when a test or a number is wrong, 3 without a GPU.
    """
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    from rich.console import Console

    from spt_deploy.workflows.gpu.check import gpu_check

    try:
        report = gpu_check(
            device,
            seconds,
            quick,
            status=lambda text: click.echo(text, err=True),
            on_part=lambda found: write_json(out / REPORT, found.to_dict()),
        )
        write_json(out / REPORT, report.to_dict())
        if as_json:
            click.echo((out / REPORT).read_text(encoding="utf-8"), nl=False)
        else:
            console = Console(highlight=False)
            report.print(console if console.is_terminal else Console(highlight=False, width=160))
    except SptError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(RuntimeMissingError.exit_code if isinstance(error, RuntimeMissingError) else error.exit_code)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
