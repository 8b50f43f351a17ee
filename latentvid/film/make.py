"""The making of a film: windows sampled, decoded, measured, encoded and committed, one after another."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentMeta, LatentWriter, describe
from latentvid.core.errors import ResourceError
from latentvid.core.memory import memory_failure
from latentvid.core.rng import Rng
from latentvid.extension.plan import FilmPlan, Window
from latentvid.extension.rollout import MadeWindow, roll_out
from latentvid.extension.rules import ContextRule, OverlapRule, Setting
from latentvid.film.anchors import load_anchors
from latentvid.film.folder import NUM_IN_FRONT, Carry, RunFolder, load_carry, save_carry
from latentvid.film.guard import Guard
from latentvid.film.preview import Preview
from latentvid.film.settings import FilmSettings, WindowRecord
from latentvid.metrics.drift import Drift
from latentvid.pipeline import LatentVideoPipeline, Sampling
from latentvid.video.writer import VideoWriter


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a film is."""

    window: int
    """The window being made, from 0."""
    num_windows: int
    call: int
    """Denoiser calls done in it."""
    num_calls: int
    """Denoiser calls that a window takes."""
    shifts: Mapping[str, float] = field(default_factory=dict)
    """How far the newest finished window lies from its scene's first, see `latentvid.metrics.shift`."""
    warning: str = ""
    """What the drift guard has to say of that window."""


_OF_A_DEVICE = re.compile(r"CUDA|cuDNN|CUBLAS|HIP error")
OnProgress = Callable[[Progress], None]


@dataclass
class FilmReport:
    """What was made, JSON-able by `to_dict`."""

    out: str
    run: str | None
    """None where the run folder was not kept."""
    num_frames: int
    """Frames that were made."""
    num_windows: int
    fps: float
    width: int
    height: int
    seed: int
    prompt: str
    seconds: float
    """Wall time of this process."""
    resumed_at: int = 0
    """Windows that an earlier process had made."""
    drift: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the user should know of how it was made, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Shots(Protocol):
    """What becomes of the frames of a window on their way into the film's file."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the film's pictures."""
        ...

    def __call__(self, window: Window, frames: Tensor, before: Tensor | None) -> Tensor:
        """Turn the window's new frames [t 3 h w] in [-1, 1] into those that the film shows, possibly none.

        Args:
            before: the frames in front of them, [n 3 h w], the last `NUM_IN_FRONT` where there are as many; None at a
                film's start.
        """
        ...

    def encoding(self) -> dict[str, Any]:
        """Return arguments of `VideoWriter` for the segments."""
        ...


@dataclass(frozen=True)
class PlainShots:
    """Frames are shown as they were made."""

    settings: FilmSettings
    keeps_bits: bool = False
    """For files that are not joined from packets: segments are then only stores."""

    @property
    def size(self) -> tuple[int, int]:
        return self.settings.height, self.settings.width

    def __call__(self, window: Window, frames: Tensor, before: Tensor | None) -> Tensor:
        return frames

    def encoding(self) -> dict[str, Any]:
        return {"codec": "ffv1"} if self.keeps_bits else {"codec": "h264", "crf": self.settings.crf}


class Maker:
    """Makes the windows of one film, each from the carry of the one before.

    Args:
        pipeline: the model.
        run: where everything goes.
        shots: how frames get into the film.
        on_progress: hears of every denoiser call.
    """

    def __init__(
        self, pipeline: LatentVideoPipeline, run: RunFolder, shots: Shots, on_progress: OnProgress | None = None
    ) -> None:
        settings = run.settings
        self.pipeline, self.run, self.shots, self.on_progress = pipeline, run, shots, on_progress
        self.plan = FilmPlan(**run.record.plan)  # type: ignore[arg-type]
        self.sampling = sampling_of(pipeline, settings)
        self.embedder = pipeline.embedder()
        self.guard = Guard(run, self.plan)
        self.anchors = load_anchors(run, pipeline.compute_device)
        self.preview = Preview(run)
        self._window, self._calls = 0, 0
        self._meta = latent_meta(pipeline, settings)

    @torch.no_grad()
    def make(self, first: int, carry: Carry | None = None) -> None:
        """Make the windows from `first` on.

        Raises:
            ResourceError: disk or device gave out; what is finished stays and can be resumed.
        """
        if first == len(self.plan):
            return
        with resumable(self.run.path):
            self.preview.show(first)
            if carry is None and (first or self.run.carry(0).is_file()):
                carry = load_carry(self.run.carry(first), self.pipeline.compute_device)
            carry = carry or Carry()
            windows = roll_out(
                self.plan,
                self.sampling.rule,
                self.sampling.solver,
                self.setting_at,
                tail=None if carry.tail is None else carry.tail.contiguous(),
                first_window=first,
                rule_at=self.rule_of,
                guard=self._corrected,
            )
            began = time.perf_counter()
            for made in windows:
                carry = self._finish(made, carry, began)
                began = time.perf_counter()

    def setting_at(self, window: Window) -> Setting:
        """Begin a window, and return what it is sampled with."""
        self.begin(window)
        return self.setting(window, *self.run.settings.prompts_of(self.plan, window.index))

    def _corrected(self, made: MadeWindow, setting: Setting) -> MadeWindow:
        if self.anchors.within(made.window):  # frames that are given stay as they are
            return made
        return self.guard.correct(made, rule=self.sampling.rule, levels=setting.levels)

    def _finish(self, made: MadeWindow, carry: Carry, began: float) -> Carry:
        """Decode, measure, write and commit a window; return what the next one starts from."""
        window = made.window
        prompt = self.run.settings.prompts_of(self.plan, window.index)[1]
        decoder = self.pipeline.autoencoder.film_decoder(carry.decoder)
        frames = self.pipeline.decode_window(made, 0, decoder).cpu()
        after = Carry(made.tail.contiguous(), decoder.state(), last_of(frames, carry.last_frames))
        curves = self._curves(window, frames, carry.last_frames)
        shifts = self.guard.judge(window.index, curves)
        num_shown = self.write(window, made, frames, carry.last_frames)
        save_carry(self.run.carry(window.index + 1), after)
        self.run.commit(
            WindowRecord(
                index=window.index,
                first_frame=window.new_from,
                num_new=window.num_new,
                num_shown=num_shown,
                prompt=prompt,
                seed=self.sampling.rng.seeds[0],
                sha256=self.run.hashes(*self.files(window.index, num_shown), self.run.carry(window.index + 1)),
                curves=curves,
                shifts=shifts,
                is_corrected=made.is_corrected,
                seconds=round(time.perf_counter() - began, 3),
            )
        )
        self.preview.show(window.index + 1)
        return after

    def rule_of(self, window: Window) -> OverlapRule:
        """Return how a window goes on. Frames that are given stay as they are, so nothing is corrected beside them."""
        rule = self.sampling.rule
        if isinstance(rule, ContextRule) and self.anchors.within(window):
            return rule.model_copy(update={"bridge": 0})
        return rule

    def setting(self, window: Window, before: str, prompt: str, *, rng: Rng | None = None) -> Setting:
        """Return what a window that leads from one prompt to another is sampled with."""
        # What is shown has to become what a schedule says next, and may take more than one window for that.
        settings, is_first = self.run.settings, window.index == 0 and not self.plan.given
        is_planned = settings.prompts is None and prompt == settings.prompt
        setting = self.pipeline.setting(
            self.sampling,
            [prompt],
            self.run.settings.negative_prompt,
            embedder=self.embedder,
            before=[before],
            continues=is_planned and not is_first,
            rng=rng,
            on_call=lambda: self._report_progress(self._calls + 1),
        )
        return replace(setting, denoise=self.anchors.hold(setting.denoise, window))

    def begin(self, window: Window) -> None:
        """Tell that a window is begun."""
        self._window = window.index
        self._report_progress(0)

    def write(
        self, window: Window, made: MadeWindow, frames: Tensor, before: Tensor | None, *, into: RunFolder | None = None
    ) -> int:
        """Write a window's latents and its segment; return how many frames the film shows of it.

        Args:
            before: the frames in front of the window's.
            into: another folder than the run's own.
        """
        run = into or self.run
        times = [(window.new_from - self.plan.given + k) / self._meta.fps for k in range(window.num_new)]
        with LatentWriter(run.latents(window.index), self._meta, overwrite=True) as latents:
            latents.write(made.latents[0, :, : window.num_new], times)
        shown = self.shots(window, frames, before)
        if len(shown):
            height, width = self.shots.size
            fps = Fraction(self.run.settings.fps)
            target = run.segment(window.index)
            more = self.shots.encoding()
            with VideoWriter(target, fps=fps, width=width, height=height, overwrite=True, **more) as writer:
                writer.write(shown)
        return len(shown)

    def _curves(self, window: Window, frames: Tensor, before: Tensor | None) -> dict[str, list[float]]:
        """Measure a window; the last frame of a clip that is continued counts as the film's first, to show the join."""
        if window.index == 0 and before is not None:
            return measure(torch.cat([before[-1:], frames]), None)
        return measure(frames, None if before is None else before[-1])

    def files(self, index: int, num_shown: int) -> list[Path]:
        segment = [self.run.segment(index)] if num_shown else []
        return [self.run.latents(index), *segment]

    def _report_progress(self, calls: int) -> None:
        self._calls = calls
        if self.on_progress is not None:
            guard = self.guard
            at = Progress(
                self._window, len(self.plan), calls, self.sampling.num_calls, guard.shifts, guard.take_warning()
            )
            self.on_progress(at)


def sampling_of(pipeline: LatentVideoPipeline, settings: FilmSettings) -> Sampling:
    """Return how a film's windows are sampled."""
    return pipeline.sampling(
        seeds=settings.seed,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_rescale=settings.guidance_rescale,
        solver=settings.solver,
        rule=settings.rule,
        height=settings.height,
        width=settings.width,
    )


def latent_meta(pipeline: LatentVideoPipeline, settings: FilmSettings) -> LatentMeta:
    """Return what the latent files of a film say of it."""
    fps = Fraction(settings.model_fps)
    return describe(pipeline.autoencoder, height=settings.height, width=settings.width, fps=fps, time_base=1 / fps)


def last_of(frames: Tensor, before: Tensor | None) -> Tensor:
    """Return the frames [n 3 h w] in front of those that follow `frames`, which `before` lie in front of."""
    if before is not None and len(frames) < NUM_IN_FRONT:
        frames = torch.cat([before, frames])
    return frames[-NUM_IN_FRONT:].clone()


def measure(frames: Tensor, before: Tensor | None) -> dict[str, list[float]]:
    """Return the drift curves of frames [t 3 h w] in [-1, 1]; `before` [3 h w] is the frame in front of them."""
    drift = Drift()
    drift.update(frames if before is None else torch.cat([before[None], frames]))
    skip = 0 if before is None else 1
    return {name: values[0 if name == "motion" else skip :] for name, values in drift.clips[0].curves.items()}


@contextmanager
def resumable(run: Path) -> Iterator[None]:
    """Tell, where disk, memory or device give out, how the run goes on.

    Raises:
        ResourceError: as above.
    """
    try:
        yield
    except ResourceError as error:
        raise ResourceError(f"{error} What is finished is kept: `latentvid resume {run}` goes on.") from error
    except (RuntimeError, MemoryError) as error:
        short = memory_failure(error)
        if short is None and not _OF_A_DEVICE.search(str(error)):
            raise
        what = short or str(error).strip().splitlines()[0].rstrip(".")
        raise ResourceError(f"the device gave out ({what}); `latentvid resume {run}` goes on.") from error
