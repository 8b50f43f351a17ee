"""`latentvid decode`: latent files back to videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentvid.cli import common
from latentvid.cli.output import Output
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import check_output
from latentvid.core.text import shown

if TYPE_CHECKING:
    from latentvid.autoencoders.base import BaseAutoencoder
    from latentvid.autoencoders.foreign_latents import ForeignLatents

FOREIGN_FPS = 24.0
"""Rate of latents that do not know theirs, if not told."""
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="AXES",
        help='Of a tensor that another program wrote (.safetensors, .latent, .npy, .pt): its axes, as "b c t h w".',
    ),
]
Scaling = Annotated[
    Literal["raw", "model"] | None,
    typer.Option(
        "--scaling",
        help="Of such a tensor: as the encoder gave it, or scaled and shifted as the model has it (the default, "
        "except for ComfyUI's files).",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", min=0.01, max=1000, metavar="R", help="Its frame rate; 24 if not given."),
]
TensorName = Annotated[
    str | None, typer.Option("--tensor", metavar="NAME", help="Its name, where the file holds several.")
]
Item = Annotated[
    int | None, typer.Option("--item", min=0, metavar="K", help="Which of its batch, where it holds several.")
]


def run(
    latents: Annotated[
        Path,
        typer.Argument(metavar="LATENTS", help="A latent file that `encode` wrote, or another program's (--layout)."),
    ],
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
    layout: Layout = None,
    scaling: Scaling = None,
    fps: Fps = None,
    tensor: TensorName = None,
    item: Item = None,
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
      latentvid decode comfy.latent -o clip.mp4 --vae wan --layout "b c t h w" --fps 16
    """
    check_output(output, overwrite=overwrite)
    out = Output(as_json=json, quiet=quiet)
    if layout is not None:
        if audio is not None or any_vae:
            flag = "--any-vae" if any_vae else "--audio"
            raise UsageError(f"{flag} is for latents that `encode` wrote, and --layout for those of other programs.")
        from latentvid.autoencoders.foreign_latents import read_foreign

        foreign = read_foreign(latents, layout, scaling=scaling, tensor=tensor, item=item)
        assumed = [name for name, value in (("--scaling", scaling), ("--fps", fps)) if value is None]
        autoencoder = _load(vae, device, dtype, max_memory)
        _decode_foreign(autoencoder, foreign, output, fps or FOREIGN_FPS, assumed, overwrite=overwrite, out=out)
        return
    _check_ours(latents, {"--scaling": scaling, "--fps": fps, "--tensor": tensor, "--item": item})
    from latentvid.autoencoders.latent_file import LatentFile

    file = LatentFile(latents)  # before anything slow
    from latentvid.autoencoders.codec import decode_file, recorded_source

    audio_from = recorded_source(file) if audio == "source" else Path(audio) if audio else None
    autoencoder = _load(vae, device, dtype, max_memory)
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
    if audio_from and not done["has_audio"]:
        out.warn(f"{audio_from} holds no sound; {output} has none either")
    _print_result(done, output, out)


def _load(vae: str | None, device: str, dtype: str, max_memory: int | None) -> BaseAutoencoder:
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime

    name = vae or only_checkpoint("--vae")
    return load_autoencoder(name, runtime=resolve_runtime(device, dtype), max_memory=max_memory)


def _check_ours(latents: Path, told: dict[str, object]) -> None:
    """Refuse latents of other programs, and what is said of them only, where there is no layout.

    Raises:
        CheckpointError, UsageError: as above.
    """
    from latentvid.autoencoders.foreign_latents import is_foreign

    for flag, value in told.items():
        if value is not None:
            raise UsageError(f'{flag} is for latents of other programs, and needs --layout, such as "b c t h w".')
    if is_foreign(latents):
        raise CheckpointError(
            f"{latents} holds no latents that `encode` wrote; if it holds those of another program, say how they lie "
            'with --layout, such as --layout "b c t h w" (and --scaling, --fps).'
        )


def _decode_foreign(
    autoencoder: BaseAutoencoder,
    latents: ForeignLatents,
    output: Path,
    fps: float,
    assumed: list[str],
    *,
    overwrite: bool,
    out: Output,
) -> None:
    from latentvid.autoencoders.foreign_latents import check_channels, decode_foreign
    from latentvid.video.rate import as_rate

    check_channels(autoencoder, latents)
    untold = f" (not told by {' and '.join(assumed)})" if assumed else ""
    note = (
        f"{latents.path} does not say what made its latents, so it is not checked that {autoencoder.name} can decode"
        f" them; they are taken as {latents.scaling}, at {fps:g} frames per second{untold}"
    )
    out.note(note)
    with out.progress("decoding", autoencoder.grid.frames(latents.num_latents)) as advance:
        done = decode_foreign(autoencoder, latents, output, fps=as_rate(fps), overwrite=overwrite, on_frames=advance)
    _print_result({**done, "notes": [note]}, output, out)


def _print_result(done: dict[str, Any], output: Path, out: Output) -> None:
    if done["tiles"] > 1:
        out.warn(f"to stay within --max-memory, frames were decoded in {done['tiles']} tiles; seams may show faintly")
    out.result(done, f"{shown(output)}: {done['num_frames']} frames, {done['duration_s']:.2f} s")
