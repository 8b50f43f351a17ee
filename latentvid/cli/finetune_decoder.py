"""`latentvid finetune-decoder`: teach an image decoder time, on the user's own footage."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentvid.cli import common
from latentvid.cli.output import Output

if TYPE_CHECKING:
    from latentvid.core.runtime import Runtime
    from latentvid.finetuning.config import FinetuneConfig
    from latentvid.finetuning.estimate import Estimate
    from latentvid.finetuning.footage import Footage
    from latentvid.finetuning.result import FinetuneResult, Progress


def run(
    context: typer.Context,
    footage: Annotated[list[str], typer.Argument(metavar="FOOTAGE", help="Videos, folders of videos, or patterns.")],
    output: common.Out,
    vae: common.Vae = None,
    stages: Annotated[
        str | None,
        typer.Option(
            "--stages",
            metavar="LIST",
            help="Of temporal (the default), spatial (the image decoder too, under a discriminator) and long "
            "(long clips in chunks), with commas; the last two cost more.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Optimizer steps, at most, of each stage.")
    ] = None,
    val: Annotated[
        list[str] | None, typer.Option("--val", metavar="FOLDER", help="Held-out footage; several may be given.")
    ] = None,
    hold_out: Annotated[
        int | None,
        typer.Option("--hold-out", min=1, metavar="K", help="Hold out the last K files; about one in six by default."),
    ] = None,
    crop: Annotated[
        int | None, typer.Option("--crop", min=16, metavar="PX", help="Side of the training crops.")
    ] = None,
    clip_frames: Annotated[
        int | None,
        typer.Option("--clip-frames", min=2, metavar="N", help="Frames of a training crop (of a chunk, in long)."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, metavar="B", help="Crops per step.")] = None,
    train_spatial: Annotated[
        bool,
        typer.Option("--train-spatial", help="Train the image decoder's own weights too, single frames guarded."),
    ] = False,
    lpips_trunk: Annotated[
        Path | None,
        typer.Option(
            "--lpips-trunk", metavar="FILE", help="Train on LPIPS and measure it, with this SqueezeNet trunk."
        ),
    ] = None,
    eval_frames: Annotated[
        int | None,
        typer.Option("--eval-frames", min=2, metavar="N", help="Measure on the first N frames of each held-out clip."),
    ] = None,
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    config: common.Config = None,
    overrides: common.Set = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="K", help="Crops, their order and new weights follow from it."),
    ] = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    resume: common.Resume = False,
    dry_run: common.DryRun = False,
    quiet: common.Quiet = False,
    json: common.Json = False,
) -> None:
    """Finetune the decoder of an image autoencoder on footage.

    Temporal layers are added to the decoder and trained; the encoder is not touched, so latents stay valid.
    OUT becomes a checkpoint folder with figures of held-out clips; Ctrl-C is safe, --resume goes on.

    \b
    Example:
      latentvid finetune-decoder footage/ -o runs/decoder --vae taesd --steps 2000 --val held_out/
      torchrun --nproc_per_node 4 --no-python latentvid finetune-decoder footage/ -o runs/decoder --vae taesd
    """
    from latentvid.video.footage import find_videos

    common.check_folder_name(output, "-o", "name the folder of the finetuned decoder")
    numbered = fps is not None
    train = find_videos(footage, numbered=numbered)
    held_out = find_videos(val, numbered=numbered) if val else []
    from latentvid.core.places import only_checkpoint
    from latentvid.core.runtime import resolve_runtime
    from latentvid.finetuning.estimate import estimate
    from latentvid.finetuning.footage import find_footage
    from latentvid.training.loop import is_main_process
    from latentvid.video.reader import Reading

    runtime = resolve_runtime(device, dtype)
    flags = {
        "stages": None if stages is None else f"[{stages}]",
        "crop": crop,
        "max_eval_frames": eval_frames,
        "options.train_spatial": "true" if train_spatial else None,
        **_of_each_stage(
            {
                "loop.steps": steps,
                "loop.seed": seed,
                "loop.mixed_precision": _precision(runtime, dtype),
                "options.batch": batch,
            }
        ),
        "options.num_frames": clip_frames,
        "spatial.options.num_frames": clip_frames,
        "long.options.chunk_frames": clip_frames,
    }
    settings = _settings(config, overrides, flags, lpips_trunk)
    base = vae or str(only_checkpoint("--vae"))
    out = Output(as_json=json, quiet=quiet or not is_main_process())
    found = find_footage(
        train,
        min_frames=settings.options.num_frames,
        min_side=settings.crop,
        held_out=held_out,
        num_held_out=hold_out,
        reading=Reading(fps, deinterlace),
    )
    _print_footage(found, out)
    if dry_run:
        needs = estimate(settings, base, found, runtime=runtime)
        _print_estimate(needs, list(settings.stages), found, runtime, out)
        return
    done = _finetune(settings, base, found, output, runtime=runtime, resume=resume, command=_command(context), out=out)
    if is_main_process():
        _print_result(done, out)


def _of_each_stage(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags by their places in the config: those of the first stage stand at its top."""
    return {f"{stage}{key}": value for stage in ("", "spatial.", "long.") for key, value in flags.items()}


def _precision(runtime: Runtime, dtype: str) -> str | None:
    """Return the loop's word for the number format; None leaves it to the config."""
    short = str(runtime.describe()["dtype"])
    if dtype == "auto" and short == "fp32":
        return None
    return {"fp32": "no"}.get(short, short)


def _settings(
    config: Path | None, overrides: list[str] | None, flags: dict[str, Any], lpips_trunk: Path | None
) -> FinetuneConfig:
    from latentvid.core.config import load_config
    from latentvid.finetuning.config import FinetuneConfig

    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    settings = load_config(config, FinetuneConfig, [*(overrides or []), *given])
    return settings if lpips_trunk is None else settings.model_copy(update={"lpips_trunk": str(lpips_trunk)})


def _print_footage(found: Footage, out: Output) -> None:
    frames = sum(clip.num_frames for clip in found.train)
    out.note(f"{len(found.train)} clips to train on ({frames} frames), {len(found.held_out)} held out")
    for _, why in found.skipped:
        out.warn(f"skipped: {why}")


def _print_estimate(needs: Estimate, stages: list[str], found: Footage, runtime: Runtime, out: Output) -> None:
    from latentvid.cli.output import table
    from latentvid.core.memory import format_bytes

    facts = {
        **found.describe(),
        "stages": stages,
        "steps": needs.steps,
        "device": str(runtime.device),
        "step_s": needs.step_s,
        "prepare_s": needs.prepare_s,
        "evaluate_s": needs.evaluate_s,
        "total_s": needs.total_s,
        "memory_bytes": needs.memory_bytes,
        "disk_bytes": needs.disk_bytes,
    }
    shown = {
        "clips to train on": len(found.train),
        "clips held out": ", ".join(clip.path.name for clip in found.held_out),
        "clips skipped": len(found.skipped),
        "stages": ", ".join(stages),
        "steps": needs.steps,
        "device": str(runtime.device),
        "time": f"{_minutes(needs.total_s)} ({needs.step_s:.2f} s per step, {_minutes(needs.prepare_s)} to prepare, "
        f"{_minutes(needs.evaluate_s)} to evaluate)",
        "memory": format_bytes(needs.memory_bytes),
        "disk": format_bytes(needs.disk_bytes),
    }
    out.result(facts, table(shown))
    needs.check_memory(runtime.device)


def _finetune(
    settings: FinetuneConfig,
    base: str,
    found: Footage,
    output: Path,
    *,
    runtime: Runtime,
    resume: bool,
    command: str,
    out: Output,
) -> FinetuneResult:
    from latentvid.finetuning.result import finetune_decoder

    bars = _Bars(out)

    def on_progress(at: Progress) -> None:
        units = {"preparing": "crops", "training": "steps", "evaluating": "clips"}
        bars.at(f"{at.phase} {at.stage}".rstrip(), at.total, units[at.phase], at.done)
        if "validation" in at.record:
            out.note(_validation_line(at.record))
        if "stopped" in at.record:
            out.note(f"stage {at.stage} stopped at step {at.done}: {at.record['stopped']}")

    try:
        with bars:
            return finetune_decoder(
                found,
                output,
                vae=base,
                config=settings,
                runtime=runtime,
                resume=resume,
                command=command,
                on_progress=on_progress,
                on_note=out.note,
            )
    except KeyboardInterrupt:
        out.note(f"what was done so far is in {output}; the same command with --resume goes on.")
        raise


class _Bars(ExitStack):
    """One progress bar after the other; a terminal has room for one."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self.out = out
        self.label = ""
        self.done = 0

    def at(self, label: str, total: int, unit: str, done: int) -> None:
        if label != self.label:
            self.close()
            self.label, self.done = label, 0
            self.advance = self.enter_context(self.out.progress(label, total, unit))
        self.advance(done - self.done)
        self.done = done


def _validation_line(record: Mapping[str, Any]) -> str:
    figures = record["validation"]
    pairs = ", ".join(
        f"{key} {figures[key]:.4g} (frame by frame {figures[f'{key}_frame_by_frame']:.4g})"
        for key in ("psnr", "flicker", "lpips")
        if key in figures
    )
    return f"step {record['step']}: held-out crops {pairs}"


def _print_result(done: FinetuneResult, out: Output) -> None:
    for stage in done.trained.stages:
        out.note(stage.sentence())
    out.note(done.trained.guard.sentence())
    if done.gains.get("psnr_gain", 0) < 0:
        out.warn("on the held-out clips the finetuned decoder is worse than the image decoder; train longer.")
    out.result({"output": str(done.folder), **done.facts}, done.table)


def _command(context: typer.Context) -> str:
    """Return the command line as it was typed, for the record; that of a call from Python is not known."""
    words = sys.argv[1:]
    return shlex.join(["latentvid", *words]) if context.info_name in words else ""


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
