"""`latentvid encode`: videos to latent files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from latentvid.cli import common
from latentvid.cli.output import Output, columns
from latentvid.core.errors import CheckpointError, InputError, LatentVidError, PartialFailure, UsageError
from latentvid.core.folder import refuse_links
from latentvid.core.memory import format_bytes
from latentvid.core.text import shown


class Share(NamedTuple):
    """One of several shares of a batch, numbered from 1."""

    number: int
    of: int


def parse_share(text: str) -> Share:
    """Read "2/8".

    Raises:
        UsageError: it is no share.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    share = Share(*map(int, match.groups())) if match else Share(0, 0)
    if not 1 <= share.number <= share.of:
        raise UsageError(f"--shard {text!r} is no share; write 1/4, 2/4, 3/4 and 4/4 for four processes.")
    return share


def run(
    clips: Annotated[
        list[str],
        typer.Argument(metavar="CLIP", help="Videos, stills, folders with all below them, or patterns."),
    ],
    output: common.Out,
    vae: common.Vae = None,
    half: Annotated[bool, typer.Option("--half", help="Store latents in 16 bits: half the size.")] = False,
    max_frames: Annotated[
        int, typer.Option("--max-frames", min=0, metavar="N", help="Only the first N frames of each clip; 0 is all.")
    ] = 0,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Use what can be read of clips that break off.")
    ] = False,
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    stills: Annotated[bool, typer.Option("--stills/--no-stills", help="Take the pictures of folders too.")] = True,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N shares of the clips, dealt by their names."),
    ] = None,
    pack: Annotated[
        Path | None, typer.Option("--pack", metavar="FOLDER", help="Then lay the latents into tar files for training.")
    ] = None,
    pack_frames: Annotated[
        int,
        typer.Option("--pack-frames", min=0, metavar="N", help="Cut into windows of N frames; 0 keeps films whole."),
    ] = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="WHERE",
            help="Encode on a Ray cluster: auto is the one that runs here, local starts one on this machine, else an "
            "address (HOST:6379, ray://HOST:10001).",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            "--ray-workers",
            min=1,
            metavar="N",
            help="Autoencoders at once; each takes a GPU, or an equal share of all CPUs. By default one per GPU, or "
            "else one per machine.",
        ),
    ] = None,
    overwrite: common.Overwrite = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Turn videos into latents.

    One clip and an OUT that ends in .safetensors give that file; anything else gives a folder of them, one per clip
    and in the clips' own subfolders. Run again, it goes on where it stopped: clips whose latents are there already, of
    the same bytes and with the same settings, are left as they are, unless --overwrite is given.

    With --ray, the machines of a cluster share the clips (pip install 'latentvid[ray]' on all of them). Clips, OUT and
    the checkpoint must lie under the same paths everywhere, as on a shared disk; --max-memory is each worker's.

    \b
    Example:
      latentvid encode clip.mp4 -o clip.safetensors --vae taesd
      latentvid encode footage/ -o latents/ --vae taesd --half --shard 1/4
      latentvid encode footage/ -o latents/ --vae taesd --half --ray auto
      latentvid encode footage/ -o latents/ --vae taesd --half --pack shards/ --pack-frames 16
    """
    share = parse_share(shard) if shard else None
    if ray_workers is not None and ray is None:
        raise UsageError("--ray-workers needs --ray: auto, local, or a cluster's address.")
    _check_names(output, pack)
    named, missing = _find(clips, stills=stills, numbered=fps is not None)
    if missing and output.suffix == ".safetensors":
        raise UsageError(f"{output} is one file for {len(clips)} clips; name a folder.")
    jobs = plan_jobs(named, output, share)
    if output.is_dir():
        for _, target in jobs:
            refuse_links(output, target)
    from latentvid.autoencoders.batch import EncodeSettings, encode_files, plan_encode
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime

    name = vae or only_checkpoint("--vae")
    out = Output(as_json=json, quiet=quiet)
    settings = EncodeSettings("fp16" if half else "fp32", max_frames, allow_truncated, fps, deinterlace)
    _warn_of_numbered(clips, fps, out)
    if ray is None or dry_run:
        autoencoder = load_autoencoder(name, runtime=resolve_runtime(device, dtype), max_memory=max_memory)
    if dry_run:
        planned = (plan_encode(autoencoder, *job, settings) for job in jobs)
        _print_results(list(_announced(chain(missing, planned), out, 1)), out)
        return
    if ray is None:
        encode: Callable[..., Iterator[dict[str, Any]]] = partial(encode_files, autoencoder)
    else:
        from latentvid.autoencoders.ray_batch import RayOptions, encode_files_on_ray

        options = RayOptions(ray, ray_workers, device, dtype, max_memory)
        encode = partial(encode_files_on_ray, name, options=options)
    # Ray says on stdout, where the result goes, why workers die.
    with redirect_stdout(sys.stderr), out.progress("encoding") as advance:
        results = encode(jobs, settings=settings, overwrite=overwrite, on_frames=advance)
        done = list(_announced(chain(missing, results), out, len(jobs) + len(missing)))
    places = {str(source): number for number, (source, _) in enumerate(jobs)}
    # On a cluster, whatever is done first comes first.
    done.sort(key=lambda result: places.get(result["source"], -1))
    if pack is not None:
        _pack(done, pack, pack_frames, share, out, overwrite=overwrite)
    _print_results(done, out)


def _check_names(output: Path, pack: Path | None) -> None:
    if output.suffix != ".safetensors":
        common.check_folder_name(output, "-o", "latents are .safetensors: name one such file, or a folder")
    if pack is not None:
        common.check_folder_name(pack, "--pack", "name the folder that the shards go into")


def _find(clips: list[str], *, stills: bool, numbered: bool) -> tuple[list[tuple[Path, str]], list[dict[str, Any]]]:
    """Return the clips that are there, each with its name, and the records of those that are not.

    Raises:
        InputError: none is.
    """
    from latentvid.video.footage import find_named

    try:
        return find_named(clips, stills=stills, numbered=numbered), []
    except InputError:
        there, missing = [], []
        for clip in dict.fromkeys(clips):
            try:
                find_named([clip], stills=stills, numbered=numbered)
                there.append(clip)
            except InputError as error:
                failed = {"status": "failed", "source": clip, "error": str(error), "exit_code": error.exit_code}
                missing.append(failed)
        if not there:
            raise
    return find_named(there, stills=stills, numbered=numbered), missing


def _warn_of_numbered(clips: list[str], fps: Fraction | None, out: Output) -> None:
    """Say what else a folder of numbered pictures could be."""
    from latentvid.video.numbered import numbered_pictures

    for clip in map(Path, clips):
        if fps is None and clip.is_dir() and numbered_pictures(clip) is not None:
            out.warn(f"{clip}: its numbered pictures are taken one by one; --fps makes them one clip")


def _pack(
    results: list[dict[str, Any]], folder: Path, num_frames: int, share: Share | None, out: Output, *, overwrite: bool
) -> None:
    """Lay what is encoded, now or before, into shards."""
    from latentvid.data.latent_shards import ShardWriter
    from latentvid.training.pack import pack_files

    ready = [(Path(r["output"]), Path(r["source"])) for r in results if r["status"] in ("encoded", "skipped")]
    root = os.path.commonpath([target.parent for target, _ in ready]) if ready else ""
    files = [(target.relative_to(root).as_posix(), target, clip) for target, clip in ready]
    prefix = f"latents-{share.number}of{share.of}" if share else "latents"
    with ShardWriter(folder, prefix=prefix, overwrite=overwrite) as writer:
        pack_files(files, writer, num_frames=num_frames)
    out.note(f"{writer.num_samples} samples in {len(writer.paths)} shards: {folder}")


def plan_jobs(clips: list[tuple[Path, str]], output: Path, share: Share | None = None) -> list[tuple[Path, Path]]:
    """Return which latent file each clip becomes.

    Args:
        clips: each with its name below the folder that was searched.

    Raises:
        UsageError: several clips would become one file.
    """
    from latentvid.video.footage import shard_of

    if output.suffix == ".safetensors":
        if len(clips) > 1:
            raise UsageError(f"{output} is one file for {len(clips)} clips; name a folder.")
        return [(clips[0][0], output)]
    taken: dict[str, Path] = {}
    for clip, name in clips:
        if name in taken:
            raise UsageError(
                f"{clip} and {taken[name]} would both become {output / name}.safetensors; encode them into two folders."
            )
        taken[name] = clip
    # Two suffixes, so that film.mp4 and film.mov do not meet.
    return [
        (clip, output / f"{name}.safetensors")
        for name, clip in taken.items()
        if share is None or shard_of(name, share.of) == share.number
    ]


def _announced(results: Iterator[dict[str, Any]], out: Output, num_jobs: int) -> Iterator[dict[str, Any]]:
    """Say of each clip of a batch how it went, as it goes; what is true of many clips is said once."""
    said: set[str] = set()
    for result in results:
        if num_jobs > 1:
            out.note(_line(result))
        for note in result.get("notes", ()):
            if note not in said:
                out.warn(f"{result['source']}: {note}{' (said once for all clips)' if num_jobs > 1 else ''}")
                said.add(note)
        yield result


def _print_results(results: list[dict[str, Any]], out: Output) -> None:
    """Print what was done; a failure of the only clip is the verb's, one of several makes a partial failure.

    Raises:
        LatentVidError: as above.
    """
    failed = [result for result in results if result["status"] == "failed"]
    if failed and len(results) == 1:
        raise _error(failed[0])
    text = _line(results[0]) if len(results) == 1 else _summary(results)
    out.result({"clips": results, "counts": _counts(results)}, text)
    if failed:
        raise PartialFailure(f"{len(failed)} of {len(results)} clips failed, the others are done; {_line(failed[0])}")


def _counts(results: list[dict[str, Any]]) -> dict[str, int]:
    statuses = [result["status"] for result in results]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def _summary(results: list[dict[str, Any]]) -> str:
    """Return a table of the clips, and how many went which way."""
    rows = [["clip", "status", "frames", "latents, or why not"]]
    for result in results:
        remark = result.get("error") or result.get("reason") or _outcome(result)
        rows.append([result["source"], result["status"], str(result.get("num_frames", "")), remark])
    counts = ", ".join(f"{number} {status}" for status, number in _counts(results).items())
    return f"{columns(rows)}\n{counts or 'no clips fall to this share'}"


def _outcome(result: dict[str, Any]) -> str:
    if result["status"] == "planned":
        return f"{'x'.join(map(str, result['latents']))}, {format_bytes(result['num_bytes'])}"
    return str(result["output"])


def _line(result: dict[str, Any]) -> str:
    if result["status"] == "failed":
        return shown(f"failed: {result['error']}")
    if result["status"] == "planned":
        return shown(f"{result['source']} -> {result['output']}: latents {_outcome(result)}")
    before = f", {result['reason']}" if "reason" in result else ""
    return shown(f"{result['source']} -> {result['output']}, {result['num_frames']} frames{before}")


def _error(result: dict[str, Any]) -> LatentVidError:
    kinds = {kind.exit_code: kind for kind in (UsageError, InputError, CheckpointError)}
    return kinds.get(result["exit_code"], LatentVidError)(result["error"])
