"""`latentvid extend`: go on where a film of the user's ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output
from latentvid.core.errors import InputError, UsageError


def run(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="The video to continue.")],
    output: common.Out,
    frames: common.Frames = None,
    seconds: common.Seconds = None,
    prompt: Annotated[str, typer.Option("--prompt", metavar="P", help="What the continuation shows.")] = "",
    model: common.Model = None,
    seed: common.Seed = 0,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    contact_sheet: common.ContactSheet = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    attention: common.Attention = "auto",
    compile_networks: common.Compile = False,
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Continue a video by new frames.

    --frames and --seconds count what is added. CLIP itself is never changed.

    \b
    Example:
      latentvid extend clip.mp4 -o longer.mp4 --frames 64 --prompt "clouds drifting left at dusk"
    """
    common.check_length(frames, seconds)
    if not clip.is_file():
        raise InputError(f"{clip}: no such file.")
    if output.resolve() == clip.resolve():
        raise UsageError(f"{output} is the clip itself; name another file.")
    common.check_output_pair(output, contact_sheet, overwrite=overwrite)
    out = Output(as_json=json, quiet=quiet)
    _extend(out)


def _extend(out: Output) -> None:
    raise NotImplementedError
