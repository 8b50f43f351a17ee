"""Finetuning an image decoder in time on the user's own footage: from files to a trained decoder in a folder.

The folder holds the finished autoencoder; `run/` in it is the training, which can be resumed: a run for each stage,
which starts from what the one before exported.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.losses import ReconstructionWeights
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel
from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import locked, read_json, write_json
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime
from latentvid.data.footage import ClipInfo
from latentvid.metrics.lpips import PerceptualNetwork
from latentvid.training.adversary import DiscriminatorOptions
from latentvid.training.crops import GAMMA, HUE, LEVELS, SATURATION, NativeCrops
from latentvid.training.decoder import DecoderOptions, DecoderTask
from latentvid.training.held_out import Footage
from latentvid.training.image_guard import Guarded, guard_images
from latentvid.training.latent_cache import LatentCache, build_cache, cache_name
from latentvid.training.loop import (
    RESULT,
    LoopConfig,
    OnRecord,
    is_main_process,
    main_process_first,
    saved_states,
    train,
)
from latentvid.training.recipes import OnPrepared
from latentvid.training.resuming import OnNote, check_settings, compare_files

LPIPS_WEIGHT = 0.1
"""Where a trunk is given and no weight."""
RUN, SETTINGS = "run", "settings.json"
STAGES = ("temporal", "spatial", "long")


class FinetuneLoss(ReconstructionWeights):
    """Squared errors and flicker weigh more than in general: both are what time can mend."""

    mse: float = Field(8.0, ge=0)
    temporal: float = Field(4.0, ge=0)


class FinetuneOptions(DecoderOptions):
    """Clips a little longer: a causal decoder gains from every frame of past that it has learned to use."""

    num_frames: int = Field(12, ge=2)
    loss: FinetuneLoss = FinetuneLoss()


class FinetuneLoop(LoopConfig):
    """A high rate and a short warm-up: branches without norms start as small as the streams that they are added to
    (measured on TAESD: 30.93 to 32.37 dB in 180 steps). Branches with norms may need less; that was not measured."""

    steps: int = Field(2000, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(50, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(100, ge=1)
    validate_every: int = Field(100, ge=1)
    keep: Literal["last", "best"] = "best"
    """By the loss on held-out crops, of weights that cost single frames no more than the guard allows."""
    patience: int = Field(8, ge=0)


class SpatialOptions(FinetuneOptions):
    """The image decoder's own weights learn too, under a discriminator of videos."""

    train_spatial: bool = True
    discriminator: DiscriminatorOptions | None = DiscriminatorOptions()


class SpatialLoop(FinetuneLoop):
    """A low rate, and a tenth of it for the spatial weights."""

    lr: float = Field(2e-4, gt=0)


class LongOptions(FinetuneOptions):
    """Long clips, as films are decoded: in chunks."""

    batch: int = Field(1, ge=1)
    num_frames: int = Field(32, ge=2)
    chunk_frames: int | None = Field(8, ge=1)


class LongLoop(FinetuneLoop):
    """A last, gentle pass."""

    steps: int = Field(500, ge=1)
    lr: float = Field(3e-4, gt=0)


class SpatialStage(StrictModel):
    """Settings of the stage `spatial`."""

    options: SpatialOptions = SpatialOptions()
    loop: SpatialLoop = SpatialLoop()


class LongStage(StrictModel):
    """Settings of the stage `long`."""

    options: LongOptions = LongOptions()
    loop: LongLoop = LongLoop()


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run of a finetuning."""

    name: str
    options: DecoderOptions
    loop: LoopConfig
    num_clips: int
    num_validation_clips: int


class FinetuneConfig(StrictModel):
    """Everything about a finetuning but the footage and the autoencoder."""

    kind: Literal["finetune"] = "finetune"
    stages: list[Literal["temporal", "spatial", "long"]] = Field(["temporal"], min_length=1)
    """What to run, in this order: temporal layers only; the spatial decoder too, under a discriminator; long clips in
    chunks with carried pasts."""
    crop: int = Field(128, ge=16)
    """Height and width of the training crops in pixels; a multiple of the autoencoder's spatial factor."""
    border: int = Field(16, ge=0)
    """Pixels at their edges that do not count (no more than a quarter of a crop); all count in crops that are whole
    pictures."""
    strides: list[int] = Field([1], min_length=1)
    """Every n-th frame, one of these at random per crop."""
    vary: bool = False
    """Turn and mirror crops, run them backwards and change their light: few clips are learned by heart less soon."""
    num_clips: int = Field(360, ge=1)
    """Crops that are drawn, encoded once and trained on; of longer clips as many fewer."""
    num_validation_clips: int = Field(12, ge=1)
    """Crops of the held-out files for the figures in the log; the same."""
    max_eval_frames: int | None = Field(96, ge=2)
    """Frames of each held-out clip for the final table; null is all."""
    temporal_num_convs: int = Field(2, ge=1)
    lpips_trunk: str | None = None
    """Weights of the network that LPIPS looks through; gives the loss an lpips term."""
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    options: FinetuneOptions = FinetuneOptions()
    """Of the stage `temporal`."""
    loop: FinetuneLoop = FinetuneLoop()
    """The same."""
    spatial: SpatialStage = SpatialStage()
    long: LongStage = LongStage()

    @model_validator(mode="after")
    def _in_order(self) -> FinetuneConfig:
        if self.stages != [name for name in STAGES if name in self.stages]:
            raise ValueError(f"stages run once each, in the order {', '.join(STAGES)}")
        return self

    def plan(self) -> list[Stage]:
        """Return the stages that are to run."""
        chosen = {
            "temporal": (self.options, self.loop),
            "spatial": (self.spatial.options, self.spatial.loop),
            "long": (self.long.options, self.long.loop),
        }
        return [self._stage(name, *chosen[name]) for name in self.stages]

    def _stage(self, name: str, options: DecoderOptions, loop: LoopConfig) -> Stage:
        share = min(1.0, self.options.num_frames / options.num_frames)
        num_clips = max(options.batch, round(share * self.num_clips))
        return Stage(name, options, loop, num_clips, max(1, round(share * self.num_validation_clips)))


@dataclass(frozen=True, slots=True)
class StageDone:
    """What came of a stage."""

    name: str
    steps: int
    """Taken."""
    kept: int
    """The step whose weights were kept."""
    stopped: bool
    """Whether it stopped early."""
    validation: dict[str, float]
    """Figures of the kept weights on held-out crops."""

    def sentence(self) -> str:
        """Say how it went."""
        early = ", having stopped early" if self.stopped else ""
        return f"stage {self.name}: {self.steps} steps{early}; the weights of step {self.kept} are kept."


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What came of it, in memory."""

    autoencoder: TemporalAutoencoder
    image: ImageAutoencoder
    """What it was before: the same without temporal layers, its spatial weights as they came."""
    guard: Guarded
    stages: tuple[StageDone, ...]


def check_folder(
    folder: Path,
    config: FinetuneConfig,
    vae: str,
    footage: Footage,
    *,
    resume: bool,
    on_note: OnNote = warnings.warn,
) -> None:
    """Make sure that `folder` is new, or holds this very run where it is to be resumed; write down its settings.

    Raises:
        UsageError: as above.
    """
    path = folder / RUN / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder.")
    settings = {
        "vae": vae,
        "config": config.model_dump(mode="json"),
        "train": [str(clip.path.resolve()) for clip in footage.train],
        "held_out": [str(clip.path.resolve()) for clip in footage.held_out],
        "deinterlace": any(clip.reading.deinterlace for clip in footage.train),
    }
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} exists and holds something else than a run; name another folder.")
        write_json(path, settings)
        return
    if not resume:
        raise UsageError(f"{folder} exists and holds a run; pass --resume to go on with it, or name another folder.")
    before = read_json(path)
    if isinstance(before, dict):
        before.setdefault("deinterlace", False)
    if not isinstance(before, dict) or before.keys() != settings.keys():
        raise CheckpointError(f"{path} is damaged; start in another folder.")
    # Settings that a run does not know came after it, and their defaults are what it did.
    with suppress(ValidationError):
        before["config"] = FinetuneConfig.model_validate(before["config"]).model_dump(mode="json")
    _check_same(folder, before, settings, config, on_note)
    if before != settings:
        write_json(path, settings)


def _check_same(
    folder: Path, before: dict[str, Any], now: dict[str, Any], config: FinetuneConfig, on_note: OnNote
) -> None:
    """Refuse to go on with other settings or files, and tell of those that changed and may.

    Stages can be added at the end, and what concerns a stage that was not begun can be changed.

    Raises:
        UsageError: as above.
    """
    begun = {name for name in STAGES if saved_states(folder / RUN / name)}
    taken = {
        f"{'' if name == 'temporal' else f'{name}.'}loop.steps": int(saved_states(folder / RUN / name)[-1].name[5:])
        for name in begun
    }
    free = [name for name in STAGES[1:] if name not in begun]
    stages = before["config"].get("stages") if isinstance(before["config"], dict) else None
    if isinstance(stages, list) and now["config"]["stages"][: len(stages)] == stages:
        free.append("stages")
    old, new = ({key: each[key] for key in ("vae", "deinterlace")} | each["config"] for each in (before, now))
    for note in check_settings(folder, old, new, taken, free=tuple(free)):
        on_note(f"{folder}: {note}")
    compare_files(folder, "to train on", before["train"], now["train"])
    compare_files(folder, "held out", before["held_out"], now["held_out"])
    for stage in config.plan():
        result = folder / RUN / stage.name / RESULT
        if result.is_file() and _is_done(config, stage, folder / RUN) and read_json(result)["steps"] < stage.loop.steps:
            why = "it stopped early" if read_json(result)["stopped"] else "the next stage was grown from it"
            on_note(f"{folder}: stage {stage.name} stays as it is, since {why}")


def _is_done(config: FinetuneConfig, stage: Stage, run: Path) -> bool:
    """Tell whether a stage needs no more steps: it took as many, stopped early, or a later one was grown from it."""
    if not (run / stage.name / RESULT).is_file():
        return False
    later = config.stages[config.stages.index(stage.name) + 1 :]  # type: ignore[arg-type]
    if any(saved_states(run / name) for name in later):
        return True
    done = _stage_done(stage, run / stage.name)
    return done.stopped or done.steps >= stage.loop.steps


def finetune(
    config: FinetuneConfig,
    vae: str | Path,
    footage: Footage,
    folder: str | Path,
    *,
    runtime: Runtime,
    resume: bool = False,
    on_prepared: OnPrepared | None = None,
    on_record: OnRecord | None = None,
    on_note: OnNote = warnings.warn,
) -> Finetuned:
    """Train, guard single frames, and write the autoencoder and its delta into `folder`.

    Under torchrun all processes train, on batches of their own, and the main one does the rest.

    Raises:
        UsageError: the folder is taken, or the settings do not fit the autoencoder.
        CheckpointError: there is no such autoencoder, or no such trunk.
        ResourceError: another process is working in the folder.
        KeyboardInterrupt: with the state saved; `resume` goes on.
    """
    folder = Path(folder)
    network = load_image_autoencoder(vae)
    check_fits(config, network, footage)
    device = "cpu" if runtime.device.type == "cpu" else "auto"
    if is_main_process():
        check_folder(folder, config, str(vae), footage, resume=resume, on_note=on_note)
    with locked(folder / RUN) if is_main_process() else nullcontext():
        base = network.without_time()
        run, done = folder / RUN, []
        for stage in config.plan():
            if not _is_done(config, stage, run):
                with main_process_first(device):
                    task = build_task(
                        config,
                        stage,
                        network,
                        footage,
                        run / "cache",
                        runtime=runtime,
                        image=base,
                        on_prepared=on_prepared,
                    )
                _train(task, stage, run, device=device, resume=resume, on_record=on_record)
            done.append(_stage_done(stage, run / stage.name))
            network = load_image_autoencoder(run / stage.name / "export")
        assert isinstance(network, TemporalAutoencoder)
        return _finished(network, base, footage, folder, runtime, tuple(done))


def _finished(
    exported: TemporalAutoencoder,
    base: ImageAutoencoder,
    footage: Footage,
    folder: Path,
    runtime: Runtime,
    done: tuple[StageDone, ...],
) -> Finetuned:
    """Guard single frames, and write the autoencoder and its delta."""
    for autoencoder in (base, exported):
        nn.Module.to(autoencoder, runtime.device)
    exported.name = base.name
    guard = guard_images(exported, base, [clip.path for clip in footage.held_out], reading=footage.held_out[0].reading)
    if is_main_process():
        exported.save_with_delta(folder)
    return Finetuned(exported, base, guard, done)


def _train(
    task: DecoderTask, stage: Stage, run: Path, *, device: str, resume: bool, on_record: OnRecord | None
) -> None:
    def tell(record: dict[str, Any]) -> None:
        if on_record is not None:
            on_record({"stage": stage.name, **record})

    train(task, stage.loop, run / stage.name, resume=resume, device=device, on_record=tell)


def _stage_done(stage: Stage, folder: Path) -> StageDone:
    """Return what a finished run's folder says.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        result, figures = read_json(folder / RESULT), read_json(folder / "export" / "metrics.json")["held_out"]
        return StageDone(stage.name, **result, validation=figures)
    except (InputError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged; delete its {RESULT} to export it again.") from error


def build_task(
    config: FinetuneConfig,
    stage: Stage,
    network: ImageAutoencoder,
    footage: Footage,
    cache: Path,
    *,
    runtime: Runtime,
    image: ImageAutoencoder | None = None,
    on_prepared: OnPrepared | None = None,
) -> DecoderTask:
    """Encode crops of the footage into `cache` and return what is to be trained on them.

    Args:
        image: what single frames are guarded by; by default what `network` is now.
    """
    seed, options = stage.loop.seed, stage.options
    nn.Module.to(network, runtime.device)
    caches = {}
    for name, clips, count in (
        ("train", footage.train, stage.num_clips),
        ("held-out", footage.held_out, stage.num_validation_clips),
    ):
        clips = long_enough(clips, options.num_frames)
        crops = NativeCrops(
            clips,
            num_clips=count,
            num_frames=options.num_frames,
            size=config.crop,
            strides=config.strides,
            vary=config.vary and name == "train",
            seed=seed,
            name=name,
        )
        files = [(str(c.path.resolve()), c.path.stat().st_size) for c in clips]
        variation = [("varied", GAMMA, LEVELS, SATURATION, HUE)] if crops.vary else []
        key = cache_name(
            files, count, options.num_frames, config.crop, config.strides, seed, network.latent_space(), *variation
        )
        caches[name] = _cached(crops, network, cache / f"{name}-{key}", on_prepared if name == "train" else None)
    is_whole = all((clip.height, clip.width) == (config.crop, config.crop) for clip in footage.train)
    options = options.model_copy(update={"border": 0 if is_whole else min(config.border, config.crop // 4)})
    torch.manual_seed(Rng(seed).seed_of("weights"))  # the new layers draw their first weights from it
    if isinstance(network, TemporalAutoencoder):
        grown = network
    else:
        grown = TemporalAutoencoder.from_image(network, temporal_num_convs=config.temporal_num_convs)
    perceptual = None
    if config.lpips_trunk is not None:
        perceptual = PerceptualNetwork(config.lpips_net, trunk=config.lpips_trunk)
        if not options.loss.lpips:
            loss = options.loss.model_copy(update={"lpips": LPIPS_WEIGHT})
            options = options.model_copy(update={"loss": loss})
    return DecoderTask(
        grown,
        caches["train"],
        options,
        seed=seed,
        held_out=caches["held-out"],
        perceptual=perceptual,
        image=image,
    )


def _cached(crops: NativeCrops, network: ImageAutoencoder, folder: Path, on_prepared: OnPrepared | None) -> LatentCache:
    return build_cache(crops, network.encode_clip, folder, keep_pixels=True, on_clip=on_prepared)


def long_enough(clips: Sequence[ClipInfo], num_frames: int) -> tuple[ClipInfo, ...]:
    """Return the clips that crops of that many frames can be cut from."""
    return tuple(clip for clip in clips if clip.num_frames >= num_frames)


def check_fits(config: FinetuneConfig, network: ImageAutoencoder, footage: Footage) -> None:
    """Raise UsageError where the settings, the autoencoder and the footage do not go together."""
    if config.crop % network.spatial_factor:
        raise UsageError(
            f"crops of {config.crop} pixels do not fit the autoencoder; use a multiple of {network.spatial_factor}."
        )
    for stage in config.plan():
        frames = stage.options.num_frames
        for name, clips in (("to train on", footage.train), ("held out", footage.held_out)):
            if not long_enough(clips, frames):
                raise UsageError(
                    f"stage {stage.name}: none of the clips {name} has {frames} frames; give longer footage, or lower "
                    f"{'' if stage.name == 'temporal' else stage.name + '.'}options.num_frames."
                )
