"""`latentvid evaluate`: figures for reconstructions."""

from __future__ import annotations

from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentvid.cli import common
from latentvid.cli.output import Output
from latentvid.core.errors import PartialFailure, UsageError

if TYPE_CHECKING:
    from latentvid.core.runtime import Runtime
    from latentvid.evaluation.report import Report

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure what an autoencoder loses.\n\n\b\nExample:\n  latentvid evaluate reconstruction clip.mp4 --vae taesd",
)


@app.callback()
def evaluate() -> None:
    """Keep the kind of evaluation a word of its own; without a callback typer would drop it while there is one kind."""


@app.command("reconstruction")
def reconstruction(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Videos, folders of videos, or patterns.")],
    vae: Annotated[
        list[str] | None,
        typer.Option("--vae", metavar="V", help="Autoencoder; give several to compare them with the first."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, metavar="N", help="Use the first N frames of each clip only.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, metavar="PX", help="Resize to this shorter side first.")
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", metavar="TRUNK", help="Measure LPIPS too, with this SqueezeNet trunk.")
    ] = None,
    fvd_model: Annotated[
        Path | None,
        typer.Option(
            "--fvd-model", metavar="PATH", help="Measure a Frechet distance too, with this TorchScript model."
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - prints them.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="Write table, JSON, curves and pictures.")
    ] = None,
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    max_memory: common.MaxMemory = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
) -> None:
    """Encode and decode clips, and measure what was lost.

    PSNR, SSIM and flicker need no weights; LPIPS and Frechet distances take theirs by path.

    \b
    Example:
      latentvid evaluate reconstruction clip.mp4 --vae taesd --json figures.json --report figures/
    """
    _check_targets(json, report, overwrite=overwrite)
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime
    from latentvid.video.footage import find_videos

    files = find_videos(clips, numbered=fps is not None)
    from latentvid.video.reader import Reading

    names = vae or [str(only_checkpoint("--vae"))]
    found = _measure(
        files,
        names,
        runtime=resolve_runtime(device, dtype),
        max_memory=max_memory,
        lpips=lpips,
        fvd_model=fvd_model,
        options={"max_frames": frames, "size": size, "reading": Reading(fps, deinterlace)},
        out=Output(quiet=quiet),
    )
    if json is not None and str(json) != "-":
        found.write_json(json, overwrite=overwrite)
    if report is not None:
        found.write(report, overwrite=overwrite)
    Output(as_json=str(json) == "-").result(found.to_dict(), found.table())
    _print_failures(found, len(files))


def _check_targets(json: Path | None, report: Path | None, *, overwrite: bool) -> None:
    from latentvid.core.files import check_output

    if json is not None and str(json) != "-":
        check_output(json, overwrite=overwrite)
    if report is not None and report.exists() and not report.is_dir():
        raise UsageError(f"{report} is a file; --report names a folder.")
    if report is not None and report.is_dir() and any(report.iterdir()) and not overwrite:
        raise UsageError(f"{report} holds something already; pass --overwrite to replace what is written there.")


def _measure(
    files: list[Path],
    vaes: list[str],
    *,
    runtime: Runtime,
    max_memory: int | None,
    lpips: Path | None,
    fvd_model: Path | None,
    options: dict[str, Any],
    out: Output,
) -> Report:
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.evaluation.reconstruction import DEFAULT_METRICS, evaluate_reconstruction
    from latentvid.metrics import METRICS

    metrics = {kind: METRICS.get(kind)() for kind in DEFAULT_METRICS}
    if lpips is not None:
        metrics["lpips"] = METRICS.get("lpips")(trunk=lpips, device=runtime.device)
    if fvd_model is not None:
        metrics["frechet"] = METRICS.get("frechet")(fvd_model)
    autoencoders = {name: load_autoencoder(name, runtime=runtime, max_memory=max_memory) for name in vaes}
    about = {name: {"class": type(a).__name__, "latent_space": a.latent_space()} for name, a in autoencoders.items()}
    finished = chain([0], repeat(1))  # we hear of each clip before it is done
    with out.progress("evaluating", len(files) * len(autoencoders), "clips") as advance:
        found = evaluate_reconstruction(
            autoencoders, files, metrics=metrics, about=about, on_clip=lambda *_: advance(next(finished)), **options
        )
        advance(1)
    return found


def _print_failures(found: Report, num_clips: int) -> None:
    from latentvid.core.errors import InputError

    if not found.failures:
        return
    clip, why = next(iter(found.failures.items()))
    if len(found.failures) == num_clips:
        raise InputError(why)
    raise PartialFailure(f"{len(found.failures)} of {num_clips} clips could not be read; the first is {clip}: {why}")
