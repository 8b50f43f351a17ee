"""What a run folder remembers: everything that a film's bytes depend on, as strict data."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from latentvid.core.config import StrictModel
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rules import RuleConfig
from latentvid.film.prompts import PromptSchedule
from latentvid.video.rate import parse_rate
from latentvid.video.reader import Reading

DriftGuard = Literal["off", "warn", "correct", "stop"]
SourceFrames = Literal["auto", "copy", "lossless", "reencode"]
Retime = Literal["blend", "repeat", "none"]
"""How new frames get to a clip's rate where the model has another: mixed of two neighbours, the nearest one, or not at
all, each frame of the model being one of the clip's."""

# Run folders come from anybody: what a number leads to is bounded before it is used.
MOST_FRAMES = 1 << 24
"""Frames of a film: a week at 24 per second."""
MOST_STEPS = 10_000
MOST_PIXELS = 16_384
"""Per side."""


def _as_rate(text: str) -> str:
    match = re.fullmatch(r"([0-9]{1,18})(?:/([0-9]{1,18}))?", text)
    if match is None or not int(match[2] or 1):
        raise ValueError(f"{text[:40]!r} is no frame rate")
    if not Fraction(1, 1_000_000) <= Fraction(text) <= 1000:
        raise ValueError(f"{text[:40]!r} frames per second cannot be")
    return text


Rate = Annotated[str, AfterValidator(_as_rate)]
"""Frames per second, as a fraction."""
Count = Annotated[int, Field(ge=0, le=2 * MOST_FRAMES)]
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Place(StrictModel):
    """Where and how a film is computed; the rest of it must be computed the same way."""

    device: str = "cpu"
    dtype: str = "fp32"
    attention: str = "sdpa"
    compile: bool = False
    threads: int = Field(1, ge=1, le=4096)


class Picture(StrictModel):
    """A user's picture that a film begins or ends with."""

    path: str
    sha256: Sha256


class OwnFilm(StrictModel):
    """The run of ours that made the clip, found by the clip's hash."""

    run: str
    num_frames: int = Field(ge=1, le=4 * MOST_FRAMES)
    """Frames of its latents, as its plan counts them; the new film counts on from there."""


class ClipSettings(StrictModel):
    """A user's clip that a film continues."""

    path: str
    sha256: Sha256
    width: Side
    """As shown, after rotation."""
    height: Side
    fps: Rate
    """Of the file, as a fraction."""
    num_frames: int = Field(ge=1, le=2 * MOST_FRAMES)
    pixel_aspect: Rate = "1"
    """Width of a pixel over its height, as shown, as a fraction."""
    num_added: int = Field(ge=1, le=MOST_FRAMES)
    """Frames to add, at the file's own rate."""
    is_retimed: bool
    """Whether the model's rate is another one, to which new frames are fitted."""
    retime: Retime = "blend"
    shown_before: Count = 0
    """New frames that this clip, being a film of ours, holds already."""
    made_before: Count = 0
    """Frames that the model made for these."""
    hand_over_frames: Count = 0
    """New frames over which the clip's look goes over into the model's; 0 is at once."""
    source_frames: SourceFrames = "auto"
    """How its frames were asked to get into the film."""
    how: Literal["copy", "lossless", "reencode"] | None = None
    """How they do: packets copied, every bit encoded anew, or encoded anew at `crf`; None until it was tried."""
    planes: Literal["own", "rgb"] = "rgb"
    """What a film without loss stores: the clip's own planes, or RGB, where its container holds no other."""
    why: str = ""
    """Why no packets were copied, as part of a sentence; empty where they were, or nothing else was asked for."""
    notes: list[str] = []
    """What became of all that the clip holds beside its pictures, a sentence each."""
    own: OwnFilm | None = None
    """Where its latents are; None for a clip that is encoded."""
    given_fps: str | None = None
    """The rate that was given for numbered pictures, or a stream that states none."""
    deinterlace: bool = False

    @property
    def reading(self) -> Reading:
        """How the clip is opened."""
        return Reading(None if self.given_fps is None else parse_rate(self.given_fps), self.deinterlace)


class FilmSettings(StrictModel):
    """All that a film follows from, besides the model's weights."""

    kind: Literal["generate", "extend"] = "generate"
    film: str
    """File name of the film, which lies beside the run folder."""
    prompt: str = ""
    negative_prompt: str = ""
    prompts: PromptSchedule | None = None
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 64)
    num_frames: int = Field(ge=1, le=MOST_FRAMES)
    """Frames to make, at the model's own rate."""
    num_inference_steps: int = Field(20, ge=1, le=MOST_STEPS)
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    solver: str = "dpmpp_2m"
    rule: RuleConfig
    drift_guard: DriftGuard = "off"
    drift_limit: float = Field(0.3, gt=0)
    height: Side
    width: Side
    """Pixels that the model makes."""
    fps: Rate
    """Of the film's file, as a fraction."""
    model_fps: Rate
    start_image: Picture | None = None
    end_image: Picture | None = None
    crf: float = Field(18.0, ge=0, le=51)
    contact_sheet: str | None = None
    overwrite: bool = False
    """Of the call that began the run; no later one takes leave from it."""
    keep_run: bool = True
    model: str | None = None
    """Folder of the model; None where the pipeline was made in memory."""
    place: Place = Place()
    clip: ClipSettings | None = None

    @model_validator(mode="after")
    def _can_be(self) -> FilmSettings:
        if (self.kind == "extend") != (self.clip is not None):
            raise ValueError("a film is either made from a prompt or continues a clip")
        if self.clip is not None and not 1e-4 <= Fraction(self.clip.fps) / Fraction(self.model_fps) <= 1e4:
            raise ValueError("the rates of clip and model lie too far from each other")
        return self

    def prompts_of(self, plan: FilmPlan, index: int) -> tuple[str, str]:
        """Return the prompts that a window comes from and goes to."""
        if self.prompts is None:
            return self.prompt, self.prompt
        return self.prompts.around(plan[index], before=plan[index - 1] if index else None, given=plan.given)


def clip_of(settings: FilmSettings) -> ClipSettings:
    """Return the clip that a film continues.

    Raises:
        CheckpointError: it continues none.
    """
    if settings.clip is None:
        raise CheckpointError("the run's record names no clip to continue.")
    return settings.clip


class FilmFacts(StrictModel):
    """The finished film."""

    sha256: Sha256
    num_frames: Count


class Reroll(StrictModel):
    """A window that was made again."""

    window: int = Field(ge=0)
    seed: int
    prompt: str


class RunRecord(StrictModel):
    """`run.json`."""

    type: Literal["run"] = "run"
    format: Literal[1] = 1
    settings: FilmSettings
    plan: dict[str, int | bool]
    """The arguments of `FilmPlan`."""
    num_windows: int = Field(ge=1, le=MOST_FRAMES)
    weights: dict[str, str]
    """Component -> hash of what it computes with."""
    versions: dict[str, str]
    film: FilmFacts | None = None
    sheet: Sha256 | None = None
    """Hash of the contact sheet, once it was written."""
    rerolls: list[Reroll] = []

    @model_validator(mode="after")
    def _agrees(self) -> RunRecord:
        try:
            plan = FilmPlan(**self.plan)  # type: ignore[arg-type]
        except (TypeError, UsageError) as error:
            raise ValueError(f"plan: {error}") from error
        numbers = (plan.num_frames, plan.window, plan.overlap, plan.given)
        if not 0 <= min(numbers) <= max(numbers) <= 2 * MOST_FRAMES:
            raise ValueError("plan: its numbers are too large")
        if (plan.num_frames, plan.num_windows) != (self.settings.num_frames, self.num_windows):
            raise ValueError("plan: it is that of another film")
        if plan.overlap != self.settings.rule.overlap or bool(plan.given) != (self.settings.clip is not None):
            raise ValueError("plan: it does not go with the settings")
        if any(reroll.window >= self.num_windows for reroll in self.rerolls):
            raise ValueError("rerolls: there is no such window")
        return self


class WindowRecord(StrictModel):
    """`windows/NNNNNN.json`: written last, it makes a window complete."""

    index: Count
    first_frame: Count
    """In the film as the model counts it, a given clip's overlap included."""
    num_new: Count
    num_shown: Annotated[int, Field(ge=0, le=1 << 31)]
    """Frames of the segment: others than `num_new` where a clip of another rate is continued."""
    prompt: str
    seed: int
    sha256: dict[str, str]
    """File name in the run folder -> hash."""
    curves: dict[str, list[float]]
    """Drift, a value per frame."""
    shifts: dict[str, float] = {}
    """How far the window moved from its scene's first one, see `latentvid.metrics.shift`; empty for that one."""
    is_corrected: bool = False
    """Whether its latents were brought back towards that one's."""
    seconds: float
