"""`latentvid encode`: videos to latent files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentvid.cli import common
from latentvid.cli.output import Output
from latentvid.core.errors import CheckpointError, InputError, LatentVidError, PartialFailure, UsageError
from latentvid.core.memory import format_bytes


def run(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Videos, folders of videos, or patterns.")],
    output: common.Out,
    vae: common.Vae = None,
    half: Annotated[bool, typer.Option("--half", help="Store latents in 16 bits: half the size.")] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Use what can be read of clips that break off.")
    ] = False,
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
    from latentvid.autoencoders.codec import encode_files, plan_encode
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime

    name = vae or only_checkpoint("--vae")
    autoencoder = load_autoencoder(name, runtime=resolve_runtime(device, dtype), max_memory=max_memory)
    out = Output(as_json=json, quiet=quiet)
    precision: Literal["fp16", "fp32"] = "fp16" if half else "fp32"
    if dry_run:
        _tell([plan_encode(autoencoder, *job, precision) for job in jobs], out)
        return
    with out.progress("encoding") as advance:
        results = encode_files(
            autoencoder,
            jobs,
            precision=precision,
            allow_truncated=allow_truncated,
            overwrite=overwrite,
            on_frames=advance,
        )
        _tell(list(_announced(results, out, len(jobs))), out)


def plan_jobs(clips: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """Return which latent file each clip becomes.

    Raises:
        UsageError: several clips would become one file.
    """
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


def _announced(results: Iterator[dict[str, Any]], out: Output, num_jobs: int) -> Iterator[dict[str, Any]]:
    """Say of each clip of a batch how it went, as it goes."""
    for result in results:
        if num_jobs > 1:
            out.note(_line(result))
        for note in result.get("notes", ()):
            out.warn(f"{result['source']}: {note}")
        yield result


def _tell(results: list[dict[str, Any]], out: Output) -> None:
    """Print what was done; a failure of the only clip is the verb's, one of several makes a partial failure.

    Raises:
        LatentVidError: as above.
    """
    failed = [result for result in results if result["status"] == "failed"]
    if failed and len(results) == 1:
        raise _error(failed[0])
    out.result({"clips": results}, "\n".join(_line(result) for result in results))
    if failed:
        raise PartialFailure(f"{len(failed)} of {len(results)} clips failed, the others are done; {_line(failed[0])}")


def _line(result: dict[str, Any]) -> str:
    if result["status"] == "failed":
        return f"failed: {result['error']}"
    if result["status"] == "planned":
        size = "x".join(map(str, result["latents"]))
        return f"{result['source']} -> {result['output']}: latents {size}, {format_bytes(result['num_bytes'])}"
    frames = f", {result['num_frames']} frames" if "num_frames" in result else ", done before"
    return f"{result['source']} -> {result['output']}{frames}"


def _error(result: dict[str, Any]) -> LatentVidError:
    kinds = {kind.exit_code: kind for kind in (UsageError, InputError, CheckpointError)}
    return kinds.get(result["exit_code"], LatentVidError)(result["error"])
