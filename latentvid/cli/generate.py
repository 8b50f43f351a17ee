"""`latentvid generate`: a film from a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output

DEFAULT_FRAMES = 64


def run(
    output: common.Out,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to show, in words.")] = "",
    model: common.Model = None,
    frames: common.Frames = None,
    seconds: common.Seconds = None,
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
    """Make a film from a prompt, of any length.

    It is made window by window in constant memory; a longer film with the same seed starts with the same frames.

    \b
    Example:
      latentvid generate "slow clouds drifting left over hills at dusk" -o clouds.mp4 --frames 64 --seed 7
    """
    common.check_length(frames, seconds, default=DEFAULT_FRAMES)
    common.check_output_pair(output, contact_sheet, overwrite=overwrite)
    out = Output(as_json=json, quiet=quiet)
    _generate(out)


def _generate(out: Output) -> None:
    raise NotImplementedError
