"""Settings of a finetuning: its stages, each with options and a loop, and the crops that they learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from latentvid.autoencoders.losses import ReconstructionWeights
from latentvid.core.config import StrictModel
from latentvid.training.adversary import DiscriminatorOptions
from latentvid.training.decoder import DecoderOptions
from latentvid.training.loop import LoopConfig

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
