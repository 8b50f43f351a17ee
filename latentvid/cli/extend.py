"""`latentvid extend`: go on where a film of the user's ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentvid.cli import common, films
from latentvid.core.errors import InputError, UsageError


@films.with_film_flags
def run(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="The video to continue.")],
    output: common.Out,
    flags: films.FilmFlags,
    prompt: Annotated[str, typer.Option("--prompt", metavar="P", help="What the continuation shows.")] = "",
    source_frames: Annotated[
        Literal["auto", "copy", "lossless", "reencode"],
        typer.Option(
            "--source-frames",
            help="How CLIP's own frames get there: auto copies packets, or else loses nothing.",
        ),
    ] = "auto",
    retime: Annotated[
        Literal["blend", "repeat", "none"],
        typer.Option(
            "--retime",
            help="Where the model's rate is not CLIP's: mix two neighbouring frames, repeat the nearest, or (none) "
            "take its frames one for one, which suits time lapses.",
        ),
    ] = "blend",
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    hand_over: Annotated[
        float,
        typer.Option(
            "--hand-over",
            min=0,
            metavar="S",
            help="Seconds over which CLIP's fine detail gives way to the model's look.",
        ),
    ] = 1.0,
) -> None:
    """Continue a video by new frames.

    --frames and --seconds count what is added, at CLIP's own rate. CLIP itself is never changed; its sound,
    subtitles, chapters and so on are kept, and what the kind of film cannot hold is named.
    A film of ours whose run folder still lies beside it goes on from its latents, not from its encoded frames.

    \b
    Example:
      latentvid extend clip.mp4 -o longer.mp4 --frames 64 --prompt "clouds drifting left at dusk"
    """
    common.check_length(flags.frames, flags.seconds)
    from latentvid.video.numbered import clip_exists

    if not clip_exists(clip):
        raise InputError(f"{clip}: no such file.")
    if output.resolve() == clip.resolve() or (output.exists() and output.samefile(clip)):
        raise UsageError(f"{output} is the clip itself; name another file.")
    flags.check(output)
    out = flags.output()
    from latentvid.film.extend import extend_clip, model_size
    from latentvid.film.folder import run_path
    from latentvid.film.timing import Timing
    from latentvid.video.reader import Reading

    reading = Reading(fps, deinterlace)
    with reading.open(clip) as reader:
        meta = reader.counted()
    for note in meta.notes:
        out.warn(f"{clip}: {note}")
    length = common.num_frames(flags.frames, flags.seconds, fps=meta.fps, default=1)
    pipeline, options = flags.load()
    if flags.dry_run:
        height, width = model_size(pipeline, meta.height, meta.width)
        films.print_estimate(
            pipeline,
            output,
            Timing.between(meta.fps, pipeline.config.fps, retime).needed(length),
            options,
            out,
            height=height,
            width=width,
            clip_pixels=meta.height * meta.width,
        )
        return
    with films.progress(out, "extending", run_path(output)) as on_progress:
        report = extend_clip(
            pipeline,
            clip,
            output,
            num_frames=length,
            prompt=prompt,
            source_frames=source_frames,
            retime=retime,
            hand_over_s=hand_over,
            reading=reading,
            on_progress=on_progress,
            **options,
        )
    films.print_report(report, out)
