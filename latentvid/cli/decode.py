"""`latentvid decode`: latent files back to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.core.files import check_output


def run(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A latent file that `encode` wrote.")],
    output: common.Out,
    vae: common.Vae = None,
    any_vae: Annotated[
        bool, typer.Option("--any-vae", help="Decode even with a decoder that the latents were not made for.")
    ] = False,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Turn latents back into a video.

    The autoencoder is the one that the file names, unless --vae names another that fits it.

    \b
    Example:
      latentvid decode clip.safetensors -o clip.mp4 --vae taesd
    """
    check_output(output, overwrite=overwrite)
    raise NotImplementedError
