"""What the verbs that make films share: their flags, their progress, their last words."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from latentvid.cli import common
from latentvid.cli.output import Output, table

if TYPE_CHECKING:
    from latentvid.film.make import FilmReport, Progress
    from latentvid.film.options import FilmOptions
    from latentvid.pipeline import LatentVideoPipeline

LIVE = ("luma", "saturation", "sharpness")
"""Shifts that the progress bar shows."""
DriftGuard = Annotated[
    Literal["off", "warn", "correct", "stop"] | None,
    typer.Option(
        "--drift-guard",
        help="On a window that moved too far from the first: nothing, a warning, bringing its latents back (what films "
        "do if not told), or stopping (exit code 6).",
    ),
]
DriftLimit = Annotated[
    float | None,
    typer.Option(
        "--drift-limit", min=0.001, metavar="X", help="How far is too far, as a share: 0.1 to be corrected, else 0.3."
    ),
]


@dataclass(frozen=True)
class FilmFlags:
    """The flags that all verbs share which make films."""

    model: common.Model = None
    frames: common.Frames = None
    seconds: common.Seconds = None
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="YAML of frame ranges and their prompts.")
    ] = None
    negative: Annotated[str, typer.Option("--negative", metavar="P", help="What to lead away from.")] = ""
    seed: common.Seed = 0
    steps: common.Steps = None
    guidance: common.Guidance = None
    solver: Annotated[str, typer.Option("--solver", metavar="NAME", help="euler, heun, dpmpp_2m or ancestral.")] = (
        "dpmpp_2m"
    )
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", min=1, metavar="N", help="Frames that windows share; the model's own if not given."),
    ] = None
    end_image: Annotated[
        Path | None, typer.Option("--end-image", metavar="IMG", help="Picture to end with, where the model allows it.")
    ] = None
    drift_guard: DriftGuard = None
    drift_limit: DriftLimit = None
    crf: Annotated[
        float, typer.Option("--crf", min=0, max=51, help="H.264 quality: 0 is best, 18 looks like the source.")
    ] = 18
    contact_sheet: common.ContactSheet = None
    discard_run: Annotated[
        bool,
        typer.Option("--discard-run", help="Remove the run folder when the film is finished; else it stays, OUT.run."),
    ] = False
    device: common.Device = "auto"
    dtype: common.Dtype = "auto"
    attention: common.Attention = "auto"
    compile_networks: common.Compile = False
    max_memory: common.MaxMemory = None
    overwrite: common.Overwrite = False
    dry_run: common.DryRun = False
    quiet: common.Quiet = False
    json: common.Json = False

    def check(self, output: Path, *, default_frames: int | None = None) -> None:
        """Refuse lengths and outputs that cannot be, before anything is computed.

        Raises:
            UsageError: as above.
        """
        common.check_length(self.frames, self.seconds, default=default_frames)
        if not self.dry_run:
            common.check_output_pair(output, self.contact_sheet, overwrite=self.overwrite)

    def load(self) -> tuple[LatentVideoPipeline, FilmOptions]:
        """Return the pipeline that the flags mean, and the options of its film.

        Raises:
            CheckpointError: it is missing or damaged, or none is named and there are several.
        """
        from latentvid.core.places import find_checkpoint
        from latentvid.core.runtime import resolve_runtime
        from latentvid.film.prompts import read_prompts
        from latentvid.pipeline import LatentVideoPipeline

        schedule = read_prompts(self.prompts) if self.prompts is not None else None
        no_loading_bars()
        folder = find_checkpoint(self.model) if self.model is not None else _only_pipeline()
        runtime = resolve_runtime(self.device, self.dtype, self.attention, self.compile_networks)
        pipeline = LatentVideoPipeline.from_pretrained(folder, runtime=runtime, max_memory=self.max_memory)
        rule = dict(pipeline.config.overlap_rule)
        options: FilmOptions = {
            "seed": self.seed,
            "negative_prompt": self.negative,
            "prompts": schedule,
            "solver": self.solver,
            "rule": rule if self.overlap is None else {**rule, "overlap": self.overlap},
            "end_image": self.end_image,
            "crf": self.crf,
            "contact_sheet": self.contact_sheet,
            "overwrite": self.overwrite,
            "keep_run": not self.discard_run,
            "model": folder,
            "runtime": runtime,
        }
        if self.steps is not None:
            options["num_inference_steps"] = self.steps
        if self.guidance is not None:
            options["guidance_scale"] = self.guidance
        if self.drift_guard is not None:
            options["drift_guard"] = self.drift_guard
        if self.drift_limit is not None:
            options["drift_limit"] = self.drift_limit
        return pipeline, options

    def output(self) -> Output:
        return Output(as_json=self.json, quiet=self.quiet)


def with_film_flags(run: Callable[..., None]) -> Callable[..., None]:
    """Return a verb that takes each flag of `FilmFlags` by itself, in place of a parameter `flags`."""
    hints = get_type_hints(FilmFlags, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(FilmFlags)
    ]

    @wraps(run)
    def verb(**arguments: Any) -> None:
        flags = FilmFlags(**{flag.name: arguments.pop(flag.name, flag.default) for flag in shared})
        run(**arguments, flags=flags)

    signature = inspect.signature(run, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "flags"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    verb.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    del verb.__wrapped__
    return verb


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


@contextmanager
def progress(out: Output, label: str, run: Path | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show how a film comes along, in denoiser calls; the total becomes known with the first of them.

    Args:
        run: a run folder; where its film can be watched meanwhile is said first, and an interrupt says how it goes on.
    """
    with ExitStack() as stack:
        if run is not None:
            stack.enter_context(interruptible(run))
        advance: Any = None
        done = 0

        def show(at: Progress) -> None:
            nonlocal advance, done
            now = at.window * at.num_calls + at.call
            if advance is None:
                if run is not None:
                    _print_preview(run, out)
                total = at.num_windows * at.num_calls
                advance = stack.enter_context(out.progress(f"{label}, {_windows(at.num_windows)}", total, "steps"))
            if at.warning:
                out.warn(at.warning)
            advance(max(0, now - done), in_words({k: v for k, v in at.shifts.items() if k in LIVE}))
            done = max(done, now)

        from latentvid.metrics.shift import in_words

        yield show


def _print_preview(run: Path, out: Output) -> None:
    from latentvid.film.folder import RunFolder
    from latentvid.film.preview import preview_path

    playlist = preview_path(RunFolder.open(run))
    if playlist is not None:
        out.note(f"watch it while it is made, from its first window on: {playlist}")


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


def print_report(report: FilmReport, out: Output) -> None:
    """Print what was made."""
    for note in report.notes:
        out.note(note)
    kept = f"; {report.run} can be resumed, extended and edited, and is safe to delete" if report.run else ""
    out.result(
        report.to_dict(),
        f"{report.out}: made {report.num_frames} frames of {report.width}x{report.height} "
        f"in {_windows(report.num_windows)}, {report.seconds:.1f} s{kept}",
    )


def _windows(count: int) -> str:
    return f"{count} window{'' if count == 1 else 's'}"


def print_estimate(
    pipeline: LatentVideoPipeline,
    output: Path,
    num_frames: int,
    options: FilmOptions,
    out: Output,
    *,
    height: int | None = None,
    width: int | None = None,
    clip_pixels: int | None = None,
) -> None:
    """Print what a film would take, and refuse it where it does not fit.

    Raises:
        ResourceError: it does not.
    """
    from latentvid.core.memory import format_bytes
    from latentvid.film.estimate import estimate_film

    names = ("num_inference_steps", "guidance_scale", "solver", "rule")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    sampling = pipeline.sampling(height=height, width=width, **chosen)
    found = estimate_film(
        pipeline, output, num_frames, sampling, is_extension=clip_pixels is not None, shown_pixels=clip_pixels
    )
    lines = {
        "frames": f"{found.num_frames} of {found.width}x{found.height}",
        "windows": f"{found.num_windows} of {found.window} frames, {found.overlap} shared",
        "weights": format_bytes(found.weights_bytes),
        "working memory": f"{format_bytes(found.working_bytes)} ({format_bytes(found.free_memory_bytes)} free)",
        "host memory": f"{format_bytes(found.host_bytes)} for encoder and libraries",
        "disk": f"{format_bytes(found.disk_bytes)} ({format_bytes(found.free_disk_bytes)} free)",
        "time": f"{found.seconds:.0f} s on {found.device} ({found.num_calls} steps of {found.step_seconds:.3g} s)",
    }
    out.result(found.to_dict(), table(lines))
    found.check()
