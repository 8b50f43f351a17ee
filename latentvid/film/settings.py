"""What a run folder remembers: everything that a film's bytes depend on, as strict data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentvid.core.config import StrictModel
from latentvid.core.errors import CheckpointError
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


class Place(StrictModel):
    """Where and how a film is computed; the rest of it must be computed the same way."""

    device: str = "cpu"
    dtype: str = "fp32"
    attention: str = "sdpa"
    compile: bool = False
    threads: int = 1


class Picture(StrictModel):
    """A user's picture that a film begins or ends with."""

    path: str
    sha256: str


class OwnFilm(StrictModel):
    """The run of ours that made the clip, found by the clip's hash."""

    run: str
    num_frames: int = Field(ge=1)
    """Frames of its latents, as its plan counts them; the new film counts on from there."""


class ClipSettings(StrictModel):
    """A user's clip that a film continues."""

    path: str
    sha256: str
    width: int = Field(ge=1)
    """As shown, after rotation."""
    height: int = Field(ge=1)
    fps: str
    """Of the file, as a fraction."""
    num_frames: int = Field(ge=1)
    pixel_aspect: str = "1"
    """Width of a pixel over its height, as shown, as a fraction."""
    num_added: int = Field(ge=1)
    """Frames to add, at the file's own rate."""
    is_retimed: bool
    """Whether the model's rate is another one, to which new frames are fitted."""
    retime: Retime = "blend"
    shown_before: int = Field(0, ge=0)
    """New frames that this clip, being a film of ours, holds already."""
    made_before: int = Field(0, ge=0)
    """Frames that the model made for these."""
    hand_over_frames: int = Field(0, ge=0)
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
    seed: int = 0
    num_frames: int = Field(ge=1)
    """Frames to make, at the model's own rate."""
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    solver: str = "dpmpp_2m"
    rule: RuleConfig
    drift_guard: DriftGuard = "off"
    drift_limit: float = Field(0.3, gt=0)
    height: int
    width: int
    """Pixels that the model makes."""
    fps: str
    """Of the film's file, as a fraction."""
    model_fps: str
    start_image: Picture | None = None
    end_image: Picture | None = None
    crf: float = Field(18.0, ge=0, le=51)
    contact_sheet: str | None = None
    overwrite: bool = False
    keep_run: bool = True
    model: str | None = None
    """Folder of the model; None where the pipeline was made in memory."""
    place: Place = Place()
    clip: ClipSettings | None = None

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

    sha256: str
    num_frames: int


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
    num_windows: int
    weights: dict[str, str]
    """Component -> hash of what it computes with."""
    versions: dict[str, str]
    film: FilmFacts | None = None
    rerolls: list[Reroll] = []


class WindowRecord(StrictModel):
    """`windows/NNNNNN.json`: written last, it makes a window complete."""

    index: int = Field(ge=0)
    first_frame: int
    """In the film as the model counts it, a given clip's overlap included."""
    num_new: int
    num_shown: int
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
