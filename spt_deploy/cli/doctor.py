"""``spt-deploy doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from spt_deploy.cli.options import json_option
from spt_deploy.errors import ResultError, RuntimeMissingError

if TYPE_CHECKING:
    from spt_deploy.workflows.doctor import Diagnosis

_COLOURS = {"works": "green", "wrong": "red", "fails": "red"}


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Try every runtime on this machine with a small model, and say what to install for the rest.

    Exit code 0 when at least one runtime works and none that is installed fails, 1 when one fails or says something
    other than PyTorch, 3 when none works.
    """
    from spt_deploy.cli.console import status
    from spt_deploy.workflows.doctor import doctor

    found = doctor(status)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    if not found.can_infer:
        raise RuntimeMissingError("no runtime works here; the table above says what to install")
    if not found.is_sound:
        bad = [f"{check.runtime} on {check.device}" for check in found.checks if check.verdict in ("wrong", "fails")]
        raise ResultError(f"{', '.join(bad)} is installed and does not work; the table above says why")


def _print(found: Diagnosis) -> None:
    from rich.markup import escape
    from rich.table import Table

    from spt_deploy.cli.console import results, show

    out = results()
    out.print(f"GPU: {found.gpu or 'none'}", markup=False)
    table = Table("runtime", "device", "version", "", "")
    for check in found.checks:
        colour = _COLOURS.get(check.verdict, "dim")
        row = (check.runtime, check.device, check.version or "", f"[{colour}]{check.verdict}[/]", escape(check.detail))
        table.add_row(*row)
    show(table)
    packages = Table("package", "version", "", "for")
    for package in found.packages:
        there = "[dim]installed[/]" if package.version else "missing"
        purpose = package.purpose if package.version else f"{package.purpose}; pip install {package.package}"
        packages.add_row(package.package, package.version or "", there, escape(purpose))
    show(packages)
