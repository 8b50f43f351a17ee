"""`latentvid generate`: a film from a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from latentvid.cli import common, films
from latentvid.cli.output import Output

DEFAULT_FRAMES = 64


def run(
    output: common.Out,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to show, in words.")] = "",
    model: common.Model = None,
    frames: common.Frames = None,
    seconds: common.Seconds = None,
    prompts: films.Prompts = None,
    negative: films.Negative = "",
    seed: common.Seed = 0,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    solver: films.Solver = "dpmpp_2m",
    overlap: films.Overlap = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels; what the model was trained at if not given.")
    ] = None,
    crf: films.Crf = 18,
    contact_sheet: common.ContactSheet = None,
    discard_run: films.DiscardRun = False,
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
    Beside OUT lies OUT.run, from which a film that was stopped goes on: latentvid resume OUT.run

    \b
    Example:
      latentvid generate "slow clouds drifting left over hills at dusk" -o clouds.mp4 --frames 64 --seed 7
    """
    common.check_length(frames, seconds, default=DEFAULT_FRAMES)
    if not dry_run:
        common.check_output_pair(output, contact_sheet, overwrite=overwrite)
    height, width = parse_size(size)
    out = Output(as_json=json, quiet=quiet)
    from latentvid.film.folder import run_path
    from latentvid.film.generate import generate_film
    from latentvid.film.prompts import read_prompts
    from latentvid.film.settings import as_rate

    schedule = read_prompts(prompts) if prompts is not None else None
    pipeline, folder, runtime = films.load(
        model,
        max_memory=max_memory,
        device=device,
        dtype=dtype,
        attention=attention,
        compile_networks=compile_networks,
    )
    length = common.num_frames(frames, seconds, fps=as_rate(pipeline.config.fps), default=DEFAULT_FRAMES)
    arguments = {
        **films.sampling_flags(pipeline, steps=steps, guidance=guidance, solver=solver, overlap=overlap),
        "height": height,
        "width": width,
    }
    if dry_run:
        films.tell_estimate(pipeline, output, length, arguments, out)
        return
    with films.interruptible(run_path(output)), films.progress(out, "generating") as on_progress:
        report = generate_film(
            pipeline,
            prompt,
            output,
            num_frames=length,
            seed=seed,
            negative_prompt=negative,
            prompts=schedule,
            crf=crf,
            contact_sheet=contact_sheet,
            overwrite=overwrite,
            keep_run=not discard_run,
            model=folder,
            runtime=runtime,
            on_progress=on_progress,
            **arguments,
        )
    films.tell(report, out)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Return height and width of "WxH".

    >>> parse_size("96x64")
    (64, 96)
    """
    from latentvid.core.errors import UsageError

    if size is None:
        return None, None
    width, x, height = size.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise UsageError(f"--size {size!r} is not understood; write it as 96x64.")
    return int(height), int(width)
