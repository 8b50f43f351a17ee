"""`latentvid evaluate`: figures for reconstructions, samples and long films."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure reconstructions, samples or long films.\n\n\b\nExample:\n"
    "  latentvid evaluate reconstruction clip.mp4 --vae taesd",
)

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - prints them.")
]
Report = Annotated[Path | None, typer.Option("--report", metavar="FOLDER", help="Write tables and pictures.")]
LpipsTrunk = Annotated[
    Path | None,
    typer.Option("--lpips", metavar="TRUNK", help="Measure LPIPS with this SqueezeNet trunk (safetensors)."),
]
FvdModel = Annotated[
    Path | None,
    typer.Option("--fvd-model", metavar="PATH", help="Measure a Frechet distance with this TorchScript model."),
]


@app.command("reconstruction")
def reconstruction(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Videos, folders of videos, or patterns.")],
    vae: common.Vae = None,
    lpips: LpipsTrunk = None,
    fvd_model: FvdModel = None,
    json: JsonFile = None,
    report: Report = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
) -> None:
    """Encode and decode clips, and measure what was lost.

    \b
    Example:
      latentvid evaluate reconstruction clip.mp4 --vae taesd --json figures.json
    """
    raise NotImplementedError
