"""`latentvid decode`: latent files back to videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output
from latentvid.core.files import check_output
from latentvid.core.text import shown


def run(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A latent file that `encode` wrote.")],
    output: common.Out,
    vae: common.Vae = None,
    any_vae: Annotated[
        bool, typer.Option("--any-vae", help="Decode even with a decoder that the latents were not made for.")
    ] = False,
    audio: Annotated[
        str | None,
        typer.Option(
            "--audio", metavar="FROM", help="Copy the sound of this file, or of the clip that was encoded: source."
        ),
    ] = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Turn latents back into a video, with the frame times, size and pixel aspect of the clip that they were.

    \b
    Example:
      latentvid decode clip.safetensors -o clip.mp4 --vae taesd --audio source
    """
    check_output(output, overwrite=overwrite)
    from latentvid.autoencoders.latent_file import LatentFile

    file = LatentFile(latents)  # before anything slow
    from latentvid.autoencoders.codec import decode_file, recorded_source

    audio_from = recorded_source(file) if audio == "source" else Path(audio) if audio else None
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime

    name = vae or only_checkpoint("--vae")
    autoencoder = load_autoencoder(name, runtime=resolve_runtime(device, dtype), max_memory=max_memory)
    out = Output(as_json=json, quiet=quiet)
    with out.progress("decoding", file.num_frames) as advance:
        done = decode_file(
            autoencoder,
            file,
            output,
            any_vae=any_vae,
            audio_from=audio_from,
            overwrite=overwrite,
            on_frames=advance,
        )
    if done["tiles"] > 1:
        out.warn(f"to stay within --max-memory, frames were decoded in {done['tiles']} tiles; seams may show faintly")
    if audio_from and not done["has_audio"]:
        out.warn(f"{audio_from} holds no sound; {output} has none either")
    out.result(done, f"{shown(output)}: {done['num_frames']} frames, {done['duration_s']:.2f} s")
