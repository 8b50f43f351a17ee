"""`latentvid drift`: how colour, contrast, sharpness, motion and seams of a video develop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentvid.cli import common
from latentvid.cli.output import Output, columns
from latentvid.core.errors import UsageError


def run(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="Any video.")],
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw the curves.")] = None,
    every: Annotated[
        int | None,
        typer.Option("--every", min=1, metavar="N", help="Windows join every N frames."),
    ] = None,
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    overwrite: common.Overwrite = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Measure how a long video drifts. Needs no weights.

    --json prints every curve, frame by frame; otherwise a table of means, slopes per 100 frames, and changes from
    beginning to end. The joins of a film of ours are known from its run folder.

    \b
    Example:
      latentvid drift clip.mp4 --png drift.png
    """
    from latentvid.core.files import check_output

    if png is not None:
        if png.suffix.lower() != ".png":
            raise UsageError(f"--png {png}: name a .png file.")
        check_output(png, overwrite=overwrite)
    out = Output(as_json=json, quiet=quiet)
    from latentvid.film.joins import joins_of_film
    from latentvid.metrics.drift import CURVES, Drift
    from latentvid.video.pixels import to_float
    from latentvid.video.reader import open_video

    with (
        open_video(clip, fps=fps, deinterlace=deinterlace) as reader,
        out.progress("measuring", reader.meta.num_frames) as advance,
    ):
        drift = Drift(every=every, joins=[] if every else joins_of_film(clip))
        for frame in reader.frames():
            drift.update(to_float(frame.pixels[None]))
            advance(1)
    if png is not None:
        drift.write_png(png, title=f"Drift of {clip.name}")
    out.result(drift.report(), _table(drift.compute(), list(CURVES)))


def _table(found: dict[str, Any], curves: list[str]) -> str:
    rows = [["CURVE", "MEAN", "SLOPE/100", "CHANGE"]]
    for name in curves:
        if name in found:
            rows.append([name, *(f"{found[key]:.3f}" for key in (name, f"{name}_slope", f"{name}_change"))])
    text = columns(rows)
    if "seam_ratio" in found:
        text += f"\nseams: {found['seam_ratio']:.2f} times a neighbouring step, at worst {found['seam_ratio_max']:.2f}"
    return text
