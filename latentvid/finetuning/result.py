"""Finetune a decoder and show what it gained: held-out figures, a card, curves and pictures beside the decoder."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentvid.autoencoders.load import component_folder
from latentvid.core.checkpoints import describe_checkpoint
from latentvid.core.files import write_json
from latentvid.core.runtime import Runtime, resolve_runtime
from latentvid.evaluation.before_after import AFTER, BEFORE, before_and_after, gains, write_before_and_after
from latentvid.evaluation.report import Report
from latentvid.finetuning.card import write_card
from latentvid.finetuning.config import FinetuneConfig
from latentvid.finetuning.curves import write_curves
from latentvid.finetuning.folder import RUN, results
from latentvid.finetuning.footage import Footage, find_footage
from latentvid.finetuning.run import Finetuned, finetune
from latentvid.training.loop import is_main_process
from latentvid.training.resuming import OnNote

FILES = {
    "card": "README.md",
    "metrics": "metrics.json",
    "table": "table.md",
    "curves": "curves.png",
    "strip": "side_by_side.png",
    "clip": "side_by_side.mp4",
    "report": "report",
}
"""What is written beside the decoder, by what it is."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a finetuning is."""

    phase: Literal["preparing", "training", "evaluating"]
    done: int
    """Crops prepared, steps taken of the stage, or held-out clips evaluated (each once with either decoder)."""
    total: int
    stage: str = ""
    """The stage that trains."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The line of its log: losses, or a validation."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a finetuning made and what that is worth."""

    folder: Path
    trained: Finetuned
    """The decoder, the image decoder that it was grown from, its stages and the image guard."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What `metrics.json` holds. Under torchrun, this and what follows is empty in all processes but the main one."""
    gains: dict[str, float] = field(default_factory=dict)
    """What held-out clips gained: differences of PSNR, SSIM and LPIPS, ratios of flicker and time."""
    table: str = ""
    """Held-out clips before and after, Markdown."""
    files: dict[str, Path] = field(default_factory=dict)
    """What was written beside the decoder, by the names of `FILES`."""


def finetune_decoder(
    footage: Footage | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    vae: str | Path,
    config: FinetuneConfig | None = None,
    runtime: Runtime | None = None,
    resume: bool = False,
    command: str = "",
    on_progress: OnProgress | None = None,
    on_note: OnNote = warnings.warn,
) -> FinetuneResult:
    """Train a decoder on footage, measure it on whole held-out clips, and write it with its card into a folder.

    Under torchrun all processes train, on batches of their own, and the main one alone measures and writes.

    Args:
        footage: files, folders or patterns, of which about one file in six is held out; or the choice that
            `find_footage` made.
        out: the folder. It must be new, unless `resume`.
        vae: folder or name of the autoencoder to start from.
        config: stages, crops, losses and steps; its precision is the one that is trained in.
        runtime: where to compute; by default on the best device there is.
        resume: go on from the last saved state.
        command: how it was called, for the card.
        on_progress: called for every crop prepared, log record and clip evaluated.
        on_note: called with what the user should know of changed settings.

    Raises:
        UsageError: the folder is taken, or the settings do not fit the autoencoder or the footage.
        InputError: the footage cannot be read.
        CheckpointError: there is no such autoencoder, or no such trunk for LPIPS.
        ResourceError: another process is working in the folder, or the disk is full.
        KeyboardInterrupt: with the state saved; `resume` goes on.
    """
    out, config, runtime = Path(out), config or FinetuneConfig(), runtime or resolve_runtime()
    if not isinstance(footage, Footage):
        paths = [footage] if isinstance(footage, (str, Path)) else footage
        footage = find_footage(paths, min_frames=config.options.num_frames, min_side=config.crop)
    tell = on_progress or (lambda _: None)
    steps = {stage.name: stage.loop.steps for stage in config.plan()}
    trained = finetune(
        config,
        vae,
        footage,
        out,
        runtime=runtime,
        resume=resume,
        on_prepared=lambda done, total: tell(Progress("preparing", done, total)),
        on_record=lambda record: tell(
            Progress("training", record["step"], steps[record["stage"]], record["stage"], record)
        ),
        on_note=on_note,
    )
    if not is_main_process():
        return FinetuneResult(out, trained)
    report = _measure(trained, footage, config, runtime, tell)
    gained = gains(report)
    facts = {**describe(trained, config, vae, footage, runtime), "held_out": report.means(), **gained}
    _write(out, trained, footage, config, report, facts, command)
    files = {what: out / name for what, name in FILES.items() if (out / name).exists()}
    return FinetuneResult(out, trained, facts, gained, report.table(), files)


def _measure(
    trained: Finetuned, footage: Footage, config: FinetuneConfig, runtime: Runtime, tell: OnProgress
) -> Report:
    clips, total, begun = [clip.path for clip in footage.held_out], 2 * len(footage.held_out), itertools.count()
    report = before_and_after(
        trained.image,
        trained.autoencoder,
        clips,
        lpips_trunk=config.lpips_trunk,
        device=runtime.device,
        max_frames=config.max_eval_frames,
        reading=footage.held_out[0].reading,
        on_clip=lambda *_: tell(Progress("evaluating", next(begun), total)),  # called as each clip begins
    )
    tell(Progress("evaluating", total, total))
    return report


def _write(
    out: Path,
    trained: Finetuned,
    footage: Footage,
    config: FinetuneConfig,
    report: Report,
    facts: Mapping[str, Any],
    command: str,
) -> None:
    """Write all of `FILES`; those that somebody changed since stay as they are."""
    clips, pair = [clip.path for clip in footage.held_out], {BEFORE: trained.image, AFTER: trained.autoencoder}
    reading = footage.held_out[0].reading
    with results(out) as staged:
        write_before_and_after(staged, report, clips, pair, max_frames=config.max_eval_frames, reading=reading)
        write_curves(staged / FILES["curves"], {stage.name: out / RUN / stage.name for stage in trained.stages})
        write_card(staged, out.resolve().name, facts=facts, table=report.table(), command=command)
        write_json(staged / FILES["metrics"], facts)


def describe(
    trained: Finetuned, config: FinetuneConfig, vae: str | Path, footage: Footage, runtime: Runtime
) -> dict[str, Any]:
    """Return everything about a finetuning but its figures, JSON-able."""
    guard = trained.guard
    image_weights = trained.image.image_weights()
    spatial = trained.autoencoder.image_weights() != image_weights
    precision = {"no": "fp32"}.get(config.loop.mixed_precision, config.loop.mixed_precision)
    return {
        "base": {
            "name": trained.image.name,
            "class": trained.image.image_config["_class_name"],
            "image_weights": image_weights,
            "latent_space": trained.autoencoder.latent_space(),
            "license": describe_checkpoint(component_folder(vae)).get("license"),
        },
        "has_delta": trained.autoencoder.has_delta,
        "image_guard": {**asdict(guard), "holds": guard.holds, "sentence": guard.sentence()},
        "training": {
            "trained": "its temporal layers and the spatial decoder" if spatial else "its temporal layers",
            "temporal_parameters": trained.autoencoder.num_temporal_parameters,
            "steps": sum(stage.steps for stage in trained.stages),
            "stages": [{**asdict(stage), "sentence": stage.sentence()} for stage in trained.stages],
            "seed": config.loop.seed,
            "device": runtime.describe()["device_name"],
            "precision": precision,
            "config": config.model_dump(mode="json"),
        },
        "data": footage.describe(),
        "validation_crops": trained.stages[-1].validation,
    }
