"""`latentvid train`: whatever a config describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")],
    output: common.Out,
    overrides: common.Set = None,
    device: common.Device = "auto",
    resume: common.Resume = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Train what a config describes.

    OUT becomes a run folder: the log, the states to resume from, and in export/ what was trained.

    \b
    Example:
      latentvid train configs/train.yaml -o runs/first --set loop.steps=200
    """
    out = Output(as_json=json, quiet=quiet)
    _train(out)


def _train(out: Output) -> None:
    raise NotImplementedError
