"""`latentvid finetune-decoder`: teach an image decoder time, on the user's own footage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output


def run(
    footage: Annotated[list[str], typer.Argument(metavar="FOOTAGE", help="Videos, folders of videos, or patterns.")],
    output: common.Out,
    vae: common.Vae = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Optimizer steps.")] = None,
    val: Annotated[
        list[str] | None, typer.Option("--val", metavar="FOLDER", help="Held-out footage; several may be given.")
    ] = None,
    config: common.Config = None,
    overrides: common.Set = None,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    resume: common.Resume = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Finetune the decoder of an image autoencoder on footage.

    Temporal layers are added to the decoder and trained; the encoder is not touched, so latents stay valid.

    \b
    Example:
      latentvid finetune-decoder footage/ -o runs/decoder --vae taesd --steps 2000 --val held_out/
    """
    from latentvid.video.footage import find_videos

    train, held_out = find_videos(footage), find_videos(val or []) if val else []
    check_apart(train, held_out)
    out = Output(as_json=json, quiet=quiet)
    _finetune(out)


def check_apart(train: list[Path], held_out: list[Path]) -> None:
    """Refuse to train on what is held out.

    Raises:
        UsageError: a file is in both.
    """
    from latentvid.core.errors import UsageError

    both = {path.resolve() for path in train} & {path.resolve() for path in held_out}
    if both:
        raise UsageError(f"{min(both)} is both in FOOTAGE and in --val; held-out clips must not be trained on.")


def _finetune(out: Output) -> None:
    raise NotImplementedError
