"""`latentvid extend`: go on where a film of the user's ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentvid.cli import common, films
from latentvid.cli.output import Output
from latentvid.core.errors import InputError, UsageError


def run(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="The video to continue.")],
    output: common.Out,
    frames: common.Frames = None,
    seconds: common.Seconds = None,
    prompt: Annotated[str, typer.Option("--prompt", metavar="P", help="What the continuation shows.")] = "",
    prompts: films.Prompts = None,
    negative: films.Negative = "",
    model: common.Model = None,
    seed: common.Seed = 0,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    solver: films.Solver = "dpmpp_2m",
    overlap: films.Overlap = None,
    source_frames: Annotated[
        Literal["auto", "copy", "lossless", "reencode"],
        typer.Option("--source-frames", help="How CLIP's own frames get there: auto copies packets or loses nothing."),
    ] = "auto",
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
    """Continue a video by new frames.

    --frames and --seconds count what is added, at CLIP's own rate. CLIP itself is never changed; its sound is kept.

    \b
    Example:
      latentvid extend clip.mp4 -o longer.mp4 --frames 64 --prompt "clouds drifting left at dusk"
    """
    common.check_length(frames, seconds)
    if not clip.is_file():
        raise InputError(f"{clip}: no such file.")
    if output.resolve() == clip.resolve():
        raise UsageError(f"{output} is the clip itself; name another file.")
    if not dry_run:
        common.check_output_pair(output, contact_sheet, overwrite=overwrite)
    out = Output(as_json=json, quiet=quiet)
    from latentvid.film.extend import extend_clip, model_frames_of, model_size
    from latentvid.film.folder import run_path
    from latentvid.film.prompts import read_prompts
    from latentvid.video.reader import open_video

    schedule = read_prompts(prompts) if prompts is not None else None
    with open_video(clip) as reader:
        meta = reader.meta
    length = common.num_frames(frames, seconds, fps=meta.fps, default=1)
    pipeline, folder, runtime = films.load(
        model,
        max_memory=max_memory,
        device=device,
        dtype=dtype,
        attention=attention,
        compile_networks=compile_networks,
    )
    arguments = films.sampling_flags(pipeline, steps=steps, guidance=guidance, solver=solver, overlap=overlap)
    if dry_run:
        height, width = model_size(pipeline, meta.height, meta.width)
        films.tell_estimate(
            pipeline,
            output,
            model_frames_of(pipeline, meta.fps, length),
            {**arguments, "height": height, "width": width},
            out,
            clip_pixels=meta.height * meta.width,
        )
        return
    with films.interruptible(run_path(output)), films.progress(out, "extending") as on_progress:
        report = extend_clip(
            pipeline,
            clip,
            output,
            num_frames=length,
            prompt=prompt,
            seed=seed,
            negative_prompt=negative,
            prompts=schedule,
            source_frames=source_frames,
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
