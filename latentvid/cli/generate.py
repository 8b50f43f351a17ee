"""`latentvid generate`: a film from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common, films

DEFAULT_FRAMES = 64


@films.with_film_flags
def run(
    output: common.Out,
    flags: films.FilmFlags,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to show, in words.")] = "",
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels; what the model was trained at if not given.")
    ] = None,
    start_image: Annotated[
        Path | None,
        typer.Option("--start-image", metavar="IMG", help="Picture to begin with, where the model allows it."),
    ] = None,
) -> None:
    """Make a film from a prompt, of any length.

    It is made window by window in constant memory; a longer film with the same seed starts with the same frames.
    Beside OUT lies OUT.run, from which a film that was stopped goes on: latentvid resume OUT.run

    \b
    Example:
      latentvid generate "slow clouds drifting left over hills at dusk" -o clouds.mp4 --frames 64 --seed 7
    """
    flags.check(output, default_frames=DEFAULT_FRAMES)
    height, width = parse_size(size)
    out = flags.output()
    from latentvid.film.folder import run_path
    from latentvid.film.generate import generate_film
    from latentvid.video.rate import as_rate

    pipeline, options = flags.load()
    fps = as_rate(pipeline.config.fps)
    length = common.num_frames(flags.frames, flags.seconds, fps=fps, default=DEFAULT_FRAMES)
    if flags.dry_run:
        films.print_estimate(pipeline, output, length, options, out, height=height, width=width)
        return
    with films.progress(out, "generating", run_path(output)) as on_progress:
        report = generate_film(
            pipeline,
            prompt,
            output,
            num_frames=length,
            height=height,
            width=width,
            start_image=start_image,
            on_progress=on_progress,
            **options,
        )
    films.print_report(report, out)


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
