"""What the verbs that make films share: their flags, their progress, their last words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentvid.cli.output import Output, table

if TYPE_CHECKING:
    from latentvid.core.runtime import Runtime
    from latentvid.film.make import FilmReport, Progress
    from latentvid.pipeline import LatentVideoPipeline

DiscardRun = Annotated[
    bool, typer.Option("--discard-run", help="Remove the run folder when the film is finished; else it stays, OUT.run.")
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="YAML of frame ranges and their prompts.")
]
Negative = Annotated[str, typer.Option("--negative", metavar="P", help="What to lead away from.")]
Solver = Annotated[str, typer.Option("--solver", metavar="NAME", help="euler, heun, dpmpp_2m or ancestral.")]
Overlap = Annotated[
    int | None,
    typer.Option("--overlap", min=1, metavar="N", help="Frames that windows share; the model's own if not given."),
]
Crf = Annotated[float, typer.Option("--crf", min=0, max=51, help="H.264 quality: 0 is best, 18 looks like the source.")]

DEFAULT_STEPS, DEFAULT_GUIDANCE = 20, 3.0


def load(
    model: str | None, *, max_memory: int | None, device: str, dtype: str, attention: str, compile_networks: bool
) -> tuple[LatentVideoPipeline, Path, Runtime]:
    """Return the pipeline that the flags mean, its folder, and how it was loaded.

    Raises:
        CheckpointError: it is missing or damaged, or none is named and there are several.
    """
    from latentvid.core.places import find_checkpoint
    from latentvid.core.runtime import resolve_runtime
    from latentvid.pipeline import LatentVideoPipeline

    no_loading_bars()
    folder = find_checkpoint(model) if model is not None else _only_pipeline()
    runtime = resolve_runtime(device, dtype, attention, compile_networks)
    return LatentVideoPipeline.from_pretrained(folder, runtime=runtime, max_memory=max_memory), folder, runtime


def no_loading_bars() -> None:
    """Keep the libraries' own bars, one for every network that is loaded, off stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _only_pipeline() -> Path:
    """Return the pipeline that is meant where none was named: the only one among the checkpoints."""
    from latentvid.core.places import checkpoint_names, checkpoints_folder, only_checkpoint

    folders = [checkpoints_folder() / name for name in checkpoint_names()]
    pipelines = [folder for folder in folders if (folder / "model_index.json").is_file()]
    return pipelines[0] if len(pipelines) == 1 else only_checkpoint("--model")


def sampling_flags(
    pipeline: LatentVideoPipeline, *, steps: int | None, guidance: float | None, solver: str, overlap: int | None
) -> dict[str, Any]:
    """Return the sampling arguments of `generate_film` and `extend_clip` that the flags mean."""
    rule = dict(pipeline.config.overlap_rule)
    if overlap is not None:
        rule["overlap"] = overlap
    return {
        "num_inference_steps": steps or DEFAULT_STEPS,
        "guidance_scale": DEFAULT_GUIDANCE if guidance is None else guidance,
        "solver": solver,
        "rule": rule,
    }


@contextmanager
def progress(out: Output, label: str) -> Iterator[Callable[[Progress], None]]:
    """Show how a film comes along, in denoiser calls; the total becomes known with the first of them."""
    bars: list[Any] = []
    done = 0

    def tell(at: Progress) -> None:
        nonlocal done
        if not bars:
            context = out.progress(f"{label}, {at.num_windows} windows", at.num_windows * at.num_calls, "steps")
            bars.append(context)
            bars.append(context.__enter__())
            bars[1](at.window * at.num_calls)
            done = at.window * at.num_calls
        now = at.window * at.num_calls + at.call
        if now > done:
            bars[1](now - done)
            done = now

    try:
        yield tell
    finally:
        if bars:
            bars[0].__exit__(None, None, None)


@contextmanager
def interruptible(run: Path) -> Iterator[None]:
    """On an interrupt, say in one line how the run goes on; exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        if not (run / "run.json").is_file():
            raise
        print(f"interrupted; `latentvid resume {run}` goes on.", file=sys.stderr, flush=True)
        raise typer.Exit(130) from None


def tell(report: FilmReport, out: Output) -> None:
    """Print what was made."""
    for note in report.notes:
        out.note(note)
    kept = f"; {report.run} can be resumed, extended and edited, and is safe to delete" if report.run else ""
    out.result(
        report.to_dict(),
        f"{report.out}: made {report.num_frames} frames of {report.width}x{report.height} "
        f"in {report.num_windows} windows, {report.seconds:.1f} s{kept}",
    )


def tell_estimate(
    pipeline: LatentVideoPipeline,
    output: Path,
    num_frames: int,
    arguments: dict[str, Any],
    out: Output,
    *,
    clip_pixels: int | None = None,
) -> None:
    """Print what a film would take, and refuse it where it does not fit.

    Raises:
        ResourceError: it does not.
    """
    from latentvid.core.memory import format_bytes
    from latentvid.film.estimate import estimate_film

    sampling = pipeline.sampling(**arguments)
    found = estimate_film(
        pipeline, output, num_frames, sampling, is_extension=clip_pixels is not None, shown_pixels=clip_pixels
    )
    lines = {
        "frames": f"{found.num_frames} of {found.width}x{found.height}",
        "windows": f"{found.num_windows} of {found.window} frames, {found.overlap} shared",
        "weights": format_bytes(found.weights_bytes),
        "working memory": f"{format_bytes(found.working_bytes)} ({format_bytes(found.free_memory_bytes)} free)",
        "disk": f"{format_bytes(found.disk_bytes)} ({format_bytes(found.free_disk_bytes)} free)",
        "time": f"{found.seconds:.0f} s on {found.device} ({found.num_calls} steps of {found.step_seconds:.3g} s)",
    }
    out.result(found.to_dict(), table(lines))
    found.check()
