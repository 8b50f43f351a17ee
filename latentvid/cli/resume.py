"""`latentvid resume`: go on where a killed run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentvid.cli import common, films
from latentvid.cli.output import Output


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, or the film that it makes.")],
    drift_guard: films.DriftGuard = None,
    drift_limit: films.DriftLimit = None,
    contact_sheet: common.ContactSheet = None,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Go on where a run stopped.

    Finished windows are kept; the film becomes the same, byte for byte, as if nothing had happened. Leave to overwrite
    that was given when the run was begun is not taken over.

    \b
    Example:
      latentvid resume clouds.run
    """
    out = Output(as_json=json, quiet=quiet)
    films.no_loading_bars()
    from latentvid.film.folder import RunFolder
    from latentvid.film.resume import resume_film

    run = RunFolder.open(folder)
    common.check_sheet(contact_sheet, run.film, overwrite=overwrite)
    path = run.path
    with films.progress(out, "resuming", path) as on_progress:
        report = resume_film(
            path,
            drift_guard=drift_guard,
            drift_limit=drift_limit,
            contact_sheet=contact_sheet,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    films.print_report(report, out)
