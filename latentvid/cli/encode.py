"""`latentvid encode`: videos to latent files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common
from latentvid.cli.output import Output


def run(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Videos, folders of videos, or patterns.")],
    output: common.Out,
    vae: common.Vae = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Turn videos into latents.

    One clip and an OUT that ends in .safetensors give that file; anything else gives a folder of them.
    Clips of a folder that are encoded already are left as they are, unless --overwrite is given.

    \b
    Example:
      latentvid encode clip.mp4 -o clip.safetensors --vae taesd
    """
    from latentvid.video.footage import find_videos

    jobs = plan_jobs(find_videos(clips), output)
    out = Output(as_json=json, quiet=quiet)
    _encode(jobs, out)


def plan_jobs(clips: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """Return which latent file each clip becomes.

    Raises:
        UsageError: several clips would become one file.
    """
    from latentvid.core.errors import UsageError

    if output.suffix == ".safetensors":
        if len(clips) > 1:
            raise UsageError(f"{output} is one file for {len(clips)} clips; name a folder.")
        return [(clips[0], output)]
    taken: dict[Path, Path] = {}
    for clip in clips:
        # Two suffixes, so that film.mp4 and film.mov do not meet.
        target = output / f"{clip.name}.safetensors"
        if target in taken:
            raise UsageError(f"{clip} and {taken[target]} would both become {target}; encode them into two folders.")
        taken[target] = clip
    return [(clip, target) for target, clip in taken.items()]


def _encode(jobs: list[tuple[Path, Path]], out: Output) -> None:
    raise NotImplementedError
