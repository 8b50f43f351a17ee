"""`latentvid reroll`: make one window of a film again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common, films
from latentvid.cli.output import Output


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, or its film.")],
    window: Annotated[int, typer.Option("--window", min=0, metavar="K", help="The window, from 0.")],
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="K2", help="Of its noise; another one each time if not given."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="P", help="What it shows; the same as before if not given.")
    ] = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Make one window of a finished film again, between its two neighbours.

    The other windows keep every byte; the film is joined anew.

    \b
    Example:
      latentvid reroll clouds.run --window 3 --seed 5
    """
    out = Output(as_json=json, quiet=quiet)
    films.no_loading_bars()
    from latentvid.film.reroll import reroll_window

    with films.progress(out, f"window {window}") as on_progress:
        report = reroll_window(folder, window, seed=seed, prompt=prompt, overwrite=overwrite, on_progress=on_progress)
    films.print_report(report, out)
