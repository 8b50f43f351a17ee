"""`latentvid train`: whatever a config describes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentvid.cli import common
from latentvid.cli.output import Advance, Output, table

if TYPE_CHECKING:
    from latentvid.training.recipes import Recipe


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")],
    output: common.Out,
    overrides: common.Set = None,
    device: common.Device = "auto",
    resume: common.Resume = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Train what a config describes.

    OUT becomes a run folder: log.jsonl, the states to resume from, and in export/ what was trained.

    \b
    Example:
      latentvid train configs/train/sky_autoencoder.yaml -o runs/first --set loop.steps=200
    """
    from latentvid.training.recipes import load_recipe

    common.check_folder_name(output, "-o", "name the folder of the run")
    out = Output(as_json=json, quiet=quiet)
    recipe = load_recipe(config, overrides or [])
    if dry_run:
        _describe(recipe, out)
        return
    try:
        last = _train(recipe, output, resume=resume, device=device, out=out)
    except KeyboardInterrupt:
        out.note(f"stopped; to go on: latentvid train {config} -o {output} --resume")
        raise
    facts = {"run": str(output), "export": str(output / "export"), "steps": recipe.loop.steps, **last}
    out.result(facts, table(facts))


def _describe(recipe: Recipe, out: Output) -> None:
    from latentvid.core.config import dump_config
    from latentvid.training.summary import summarize

    facts = summarize(recipe)
    shown = {name: value for name, value in facts.items() if name != "recipe"}
    out.result(facts, f"{dump_config(recipe)}\n{table(shown)}")


def _train(recipe: Recipe, output: Path, *, resume: bool, device: str, out: Output) -> dict[str, Any]:
    """Train, and return the last figures: of the loss, and of the last validation."""
    from latentvid.training.recipes import run as train

    progress = _Progress(out, recipe.loop.steps)
    figures: dict[str, float] = {}

    def on_record(record: dict[str, Any]) -> None:
        progress.trained(record["step"])
        if "validation" in record:
            figures.update(record["validation"])
            out.note(f"step {record['step']}: {_short(record['validation'])}")

    with progress:
        last = train(
            recipe,
            output,
            resume=resume,
            device=device,
            on_record=on_record,
            on_prepared=progress.prepared,
            on_note=out.note,
        )
    return {"last": last, "validation": figures}


class _Progress:
    """A bar for each set of clips that is prepared, then one for the steps."""

    def __init__(self, out: Output, steps: int) -> None:
        self.out, self.steps = out, steps
        self._bar = ExitStack()
        self._what: tuple[str, int] | None = None
        self._done = 0
        self._advance: Advance = lambda step, note="": None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def prepared(self, done: int, total: int) -> None:
        self._show("preparing", "clips", done, total)

    def trained(self, step: int) -> None:
        self._show("training", "steps", step, self.steps)

    def _show(self, label: str, unit: str, done: int, total: int) -> None:
        if self._what != (label, total) or done < self._done:
            self._bar.close()
            self._what, self._done = (label, total), 0
            self._advance = self._bar.enter_context(self.out.progress(label, total, unit))
        self._advance(done - self._done)
        self._done = done


def _short(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
