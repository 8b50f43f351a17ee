"""`latentvid plan`: what a film would take, before it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import typer

from latentvid.cli import extend, generate

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Say how many windows, how much memory, disk and time a film would take; one step is timed.\n\n"
    '\b\nExample:\n  latentvid plan generate "clouds drifting left" --frames 10000',
)


def _planned(verb: str, run: Callable[..., None]) -> Callable[..., None]:
    """Return a verb that does nothing but plan, and needs no output."""

    @wraps(run)
    def planned(**arguments: object) -> None:
        run(**{**arguments, "dry_run": True})

    signature = inspect.signature(run, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.name != "dry_run"]
    defaults = {"output": Path("film.mp4")}
    changed = [p.replace(default=defaults.get(p.name, p.default)) for p in kept]
    # Parameters without a default come first.
    changed.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    planned.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]
    planned.__annotations__ = {p.name: p.annotation for p in changed}
    planned.__doc__ = (
        f"Say what `latentvid {verb}` would take, with the same flags.\n\n\b\nExample:\n  {_EXAMPLES[verb]}"
    )
    del planned.__wrapped__
    return planned


_EXAMPLES = {
    "generate": 'latentvid plan generate "clouds drifting left" --frames 10000',
    "extend": "latentvid plan extend clip.mp4 --frames 640",
}

for _verb, _module in (("generate", generate), ("extend", extend)):
    app.command(_verb)(_planned(_verb, _module.run))
