"""Going on where a clip of the user's ends: its tail becomes latents, and the film goes on from these.

The tail's recorded states, which reuse-and-diffuse ("Reuse and Diffuse", arXiv 2309.03549) asks of the window before,
come from inverting the clip under the model (DDIM inversion, arXiv 2010.02502).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import sha256_of
from latentvid.core.runtime import Runtime
from latentvid.extension.plan import Window
from latentvid.extension.rules import OverlapRule, ReuseRule, Tail
from latentvid.film.finish import publish, write_drift, write_sheet
from latentvid.film.folder import SEGMENT_SUFFIXES, Carry, RunFolder, run_path, save_carry
from latentvid.film.generate import complete, film_settings, new_run
from latentvid.film.make import Conditions, FilmReport, OnProgress, sampling_of
from latentvid.film.prompts import PromptSchedule
from latentvid.film.settings import ClipSettings, FilmSettings, SourceFrames, as_rate
from latentvid.pipeline import LatentVideoPipeline, Sampling, validate_rule
from latentvid.sampling.inversion import invert
from latentvid.sampling.staged import guided_steps, overlap_frames
from latentvid.temporal.context import StreamState
from latentvid.video.append import Joint, NotAppendable, append_segments, begins_with, joint_of
from latentvid.video.meta import VideoMeta
from latentvid.video.pixels import resize, to_float
from latentvid.video.reader import open_video
from latentvid.video.remux import concat_segments
from latentvid.video.writer import VideoWriter

SAME_RATE = 0.1
"""Rates that differ by no more than this share count as one."""
INVERSION_CALLS = 3
"""Denoiser calls per step of the inversion."""
TICK = Fraction(1, 90_000)
"""The clock of films whose clip is encoded again; clips of any rate keep their times on it, nearly."""


def extend_clip(
    pipeline: LatentVideoPipeline,
    clip: str | Path,
    out: str | Path,
    *,
    num_frames: int,
    prompt: str = "",
    seed: int = 0,
    negative_prompt: str = "",
    prompts: PromptSchedule | None = None,
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    guidance_rescale: float = 0.0,
    solver: str = "dpmpp_2m",
    rule: OverlapRule | Mapping[str, Any] | None = None,
    source_frames: SourceFrames = "auto",
    crf: float = 18,
    contact_sheet: str | Path | None = None,
    overwrite: bool = False,
    keep_run: bool = True,
    model: str | Path | None = None,
    runtime: Runtime | None = None,
    on_progress: OnProgress | None = None,
) -> FilmReport:
    """Continue a clip by `num_frames` frames, counted at the clip's own rate. The clip itself is never changed.

    The clip is resized to a size of the model's near its shape, and the new frames back to the clip's; nothing is
    cropped. Where the rates differ by more than a tenth, the model sees the clip at its own rate and new frames are
    repeated or left out. The clip's sound is kept.

    Args:
        clip: any video that can be read.
        out: `.mp4`, `.m4v`, `.mov` or `.mkv`.
        source_frames: how the clip's frames get there: "copy" (packets as they are, else refused), "lossless" (every
            bit, in a large file), "reencode" (at `crf`), or "auto": copied where that is possible, else lossless.

    Other arguments are those of `generate_film`; frame numbers in `prompts` count the new frames.

    Raises:
        InputError: the clip cannot be read.
        UsageError: an output that exists or cannot hold it, or settings that cannot be.
        ResourceError: disk or device gave out; the run can be resumed.
    """
    clip, out = Path(clip), Path(out)
    if out.suffix.lower() not in SEGMENT_SUFFIXES:
        raise UsageError(f"{out}: an extended clip is written as {', '.join(SEGMENT_SUFFIXES)}.")
    if out.resolve() == clip.resolve():
        raise UsageError(f"{out} is the clip itself; name another file.")
    with open_video(clip) as reader:
        meta = reader.meta
    facts = _clip_settings(pipeline, clip, meta, num_frames, source_frames)
    height, width = model_size(pipeline, meta.height, meta.width)
    settings = film_settings(
        pipeline,
        out,
        kind="extend",
        prompt=prompt,
        num_frames=model_frames_of(pipeline, meta.fps, num_frames),
        seed=seed,
        negative_prompt=negative_prompt,
        prompts=prompts,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        solver=solver,
        rule=validate_rule(rule if rule is not None else pipeline.config.overlap_rule),
        height=height,
        width=width,
        fps=facts.fps,
        crf=crf,
        contact_sheet=contact_sheet,
        overwrite=overwrite,
        keep_run=keep_run,
        model=model,
        runtime=runtime,
        clip=facts,
    )
    run = new_run(pipeline, settings, run_path(out), given=settings.rule.overlap)
    with run.locked():
        prepare_clip(run, pipeline)
        return complete(run, pipeline, clip_shots(run), on_progress=on_progress)


def model_size(pipeline: LatentVideoPipeline, height: int, width: int) -> tuple[int, int]:
    """Return the height and width, in the model's multiples, nearest a clip's shape at the model's own area."""
    multiple = pipeline.size_multiple
    own_height, own_width = pipeline.default_size
    area, shape = own_height * own_width, height / width
    tall = math.sqrt(area * shape)
    sides = [(h, w) for h in _around(tall, multiple) for w in _around(tall / shape, multiple)]
    return min(sides, key=lambda s: abs(math.log(s[0] / s[1] / shape)) + 0.5 * abs(math.log(s[0] * s[1] / area)))


def model_frames_of(pipeline: LatentVideoPipeline, clip_fps: Fraction, num_frames: int) -> int:
    """Return how many frames the model makes for `num_frames` at a clip's rate."""
    return model_frame(num_frames, retiming(clip_fps, pipeline.config.fps))


def retiming(clip_fps: Fraction, model_fps: float) -> Fraction:
    """Return model frames per frame of the clip; 1 where the rates are near each other."""
    ratio = as_rate(model_fps) / clip_fps
    return Fraction(1) if abs(1 / ratio - 1) <= SAME_RATE else ratio


def model_frame(shown: int, rate: Fraction) -> int:
    """Return which new frame of the model (from 1) the film's new frame `shown` (from 1) shows.

    >>> [model_frame(k, Fraction(12, 24)) for k in range(1, 7)], model_frame(3, Fraction(2))
    ([1, 1, 2, 2, 2, 3], 6)
    """
    return max(1, round(shown * rate))


def prepare_clip(run: RunFolder, pipeline: LatentVideoPipeline) -> None:
    """Write what the first window starts from: the clip's tail, as if the model had just made it.

    Raises:
        InputError: the clip is gone or was changed.
    """
    settings = run.settings
    clip = _clip_of(settings)
    if not Path(clip.path).is_file() or sha256_of(clip.path) != clip.sha256:
        raise InputError(f"{clip.path}: the clip that {run.path} continues is gone or was changed.")
    if clip.how is None:
        _decide(run)
    sampling = sampling_of(pipeline, settings)
    rule = sampling.rule
    with torch.no_grad():
        frames, latents = clip_tail(pipeline, sampling, settings)
        state = StreamState()
        for _ in pipeline.autoencoder.decode([latents], state=state):
            pass
        tail = Tail(latents[None, :, -rule.overlap :])
        if isinstance(rule, ReuseRule):
            tail = invert_tail(pipeline, sampling, settings, latents[None], rule)
    save_carry(run.carry(0), Carry(tail, state.detach(), frames[-1]))


def clip_tail(pipeline: LatentVideoPipeline, sampling: Sampling, settings: FilmSettings) -> tuple[Tensor, Tensor]:
    """Return the clip's last frames as the model sees them: pixels [t 3 h w], and latents [c t h w]."""
    rule = sampling.rule
    count = sampling.latent.frames if isinstance(rule, ReuseRule) else rule.overlap
    frames = context_frames(settings, count)
    latents = torch.cat(list(pipeline.autoencoder.encode([frames])), dim=1)
    return frames, latents.to(pipeline.unet.device)


def context_frames(settings: FilmSettings, count: int) -> Tensor:
    """Return the clip's last `count` frames at the model's rate and size, [t 3 h w] in [-1, 1].

    A clip that is shorter stands still before it begins: its first frame is repeated.
    """
    clip = _clip_of(settings)
    step = 1 / _rate(settings)
    span = round((count - 1) * step) + 1
    last = _last_frames(settings, span, max(0, clip.num_frames - span))
    if len(last) < min(span, clip.num_frames):  # it holds fewer frames than it claims
        last = _last_frames(settings, span, 0)
    if not last:
        raise InputError(f"{clip.path}: no frames to go on from.")
    chosen = [last[max(0, len(last) - 1 - round(k * step))] for k in reversed(range(count))]
    return to_float(torch.stack(chosen))


def _last_frames(settings: FilmSettings, count: int, start: int) -> deque[Tensor]:
    """Read from frame `start` on, and return the last `count` frames at the model's size, uint8 [3 h w]."""
    last: deque[Tensor] = deque(maxlen=count)
    with open_video(_clip_of(settings).path) as reader:
        for frame in reader.frames(start):
            last.append(resize(frame.pixels[None], settings.height, settings.width)[0])
    return last


def invert_tail(
    pipeline: LatentVideoPipeline, sampling: Sampling, settings: FilmSettings, latents: Tensor, rule: ReuseRule
) -> Tail:
    """Return the tail that a window of these latents [1 c t h w] would have left, had it been sampled."""
    prompt = settings.prompt if settings.prompts is None else settings.prompts.at(0)
    conditions = Conditions(pipeline, sampling, settings)
    setting = conditions.setting(prompt, prompt, rng=sampling.rng, guidance_scale=1.0)
    states = invert(setting.denoise, latents, setting.levels, num_iterations=INVERSION_CALLS)
    num_recorded = max(guided_steps(rule.overlap, 1.0, len(setting.levels)))
    trajectory = overlap_frames(states[:num_recorded], rule.overlap, rule.order)
    return Tail(latents[:, :, -rule.overlap :], states[0], trajectory)


@dataclass(frozen=True)
class ClipShots:
    """New frames at the clip's size and rate, encoded to be joined to it."""

    settings: FilmSettings
    given: int
    joint: Joint | None

    @property
    def clip(self) -> ClipSettings:
        return _clip_of(self.settings)

    @property
    def size(self) -> tuple[int, int]:
        return self.clip.height, self.clip.width

    def __call__(self, window: Window, frames: Tensor) -> Tensor:
        first = window.new_from - self.given + 1
        chosen = [j - first for j in self._model_frames(first, first + window.num_new)]
        return resize(frames[chosen], *self.size) if chosen else frames[:0]

    def encoding(self) -> dict[str, Any]:
        if self.joint is not None:
            joint = self.joint
            return {
                "crf": self.settings.crf,
                "color": joint.color,
                "pix_fmt": joint.pix_fmt,
                "parameter_set": joint.parameter_set,
            }
        return {**own_encoding(self.settings), "time_base": TICK}

    def _model_frames(self, start: int, stop: int) -> Iterator[int]:
        """Yield, for every frame that the film shows of start .. stop - 1, the model's frame."""
        rate = _rate(self.settings)
        low, high = math.floor((start - 1) / rate), math.ceil((stop + 1) / rate)
        for shown in range(max(1, low), min(high, self.clip.num_added) + 1):
            if start <= (frame := model_frame(shown, rate)) < stop:
                yield frame


def clip_shots(run: RunFolder) -> ClipShots:
    """Return how the run's new frames get into the film."""
    clip = _clip_of(run.settings)
    joint = joint_of(clip.path, run.film) if clip.how == "copy" else None
    return ClipShots(run.settings, int(run.record.plan["given"]), joint)


def own_encoding(settings: FilmSettings) -> dict[str, Any]:
    """Return the encoder of films whose clip is encoded again."""
    if _clip_of(settings).how == "lossless":
        return {"codec": "h264-lossless"}
    return {"codec": "h264", "crf": settings.crf}


def finish_extension(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Join the clip and the new frames, and return the drift's summary and what the user should know."""
    clip = _clip_of(run.settings)
    joined = run.path / f"film{run.film.suffix}"
    segments = [run.segment(k) for k in range(run.record.num_windows) if run.segment(k).is_file()]
    if clip.how == "copy":
        joint = joint_of(clip.path, run.film)
        append_segments(clip.path, segments, joined, joint=joint, fps=Fraction(clip.fps))
    else:
        source = run.path / f"source{run.segment_suffix}"
        _reencode(run.settings, source)
        concat_segments([source, *segments], joined, audio_from=clip.path)
        os.unlink(source)
    if clip.how != "reencode" and not begins_with(joined, clip.path):
        raise CheckpointError(f"{run.film}: the clip's own frames did not survive the joining; nothing was written.")
    publish(run, joined)
    drift = write_drift(run)
    write_sheet(run)
    return drift, notes_of(run.settings)


def notes_of(settings: FilmSettings) -> list[str]:
    """Return what was done to the clip, a sentence each."""
    clip = _clip_of(settings)
    notes = [
        {
            "copy": "the clip's own frames are untouched: its packets were copied.",
            "lossless": "the clip's packets could not be copied, so its frames were encoded again without loss.",
            "reencode": f"the clip's frames were encoded again, at crf {settings.crf:g}.",
        }[clip.how or "reencode"]
    ]
    if (clip.height, clip.width) != (settings.height, settings.width):
        notes.append(
            f"the model worked at {settings.width}x{settings.height}; "
            f"its frames were resized to the clip's {clip.width}x{clip.height}."
        )
    if clip.is_retimed:
        notes.append(
            f"the model works at {float(Fraction(settings.model_fps)):g} frames per second and the clip is at "
            f"{float(Fraction(clip.fps)):g}: its frames are repeated or left out to keep the clip's rate."
        )
    return notes


def _decide(run: RunFolder) -> None:
    """Settle how the clip's frames get into the film, by trying it before any window is made."""
    clip = _clip_of(run.settings)
    how: str = "lossless" if clip.source_frames == "auto" else clip.source_frames
    if clip.source_frames in ("auto", "copy"):
        try:
            _try_copy(run)
            how = "copy"
        except NotAppendable as why:
            if clip.source_frames == "copy":
                raise UsageError(
                    f"{clip.path}: its packets cannot be copied, because {why}; leave --source-frames away."
                ) from why
    settings = run.settings.model_copy(update={"clip": clip.model_copy(update={"how": how})})
    run.record = run.record.model_copy(update={"settings": settings})
    run.save()


def _try_copy(run: RunFolder) -> None:
    clip = _clip_of(run.settings)
    joint = joint_of(clip.path, run.film)
    shots = ClipShots(run.settings, 0, joint)
    segment, joined = run.path / "trial.mp4", run.path / f"trial-film{run.film.suffix}"
    rate = Fraction(clip.fps)
    try:
        with VideoWriter(
            segment, fps=rate, width=clip.width, height=clip.height, overwrite=True, **shots.encoding()
        ) as writer:
            writer.write(torch.zeros(2, 3, clip.height, clip.width))
        append_segments(clip.path, [segment], joined, joint=joint, fps=rate)
        if not begins_with(joined, clip.path):
            raise NotAppendable("its frames would not decode as before")
    finally:
        for file in (segment, joined):
            file.unlink(missing_ok=True)


def _reencode(settings: FilmSettings, target: Path) -> None:
    clip = _clip_of(settings)
    with (
        open_video(clip.path) as reader,
        VideoWriter(
            target,
            fps=Fraction(clip.fps),
            width=clip.width,
            height=clip.height,
            time_base=TICK,
            overwrite=True,
            **own_encoding(settings),
        ) as writer,
    ):
        start: Fraction | None = None
        for frame in reader.frames():
            start = frame.time_s if start is None else start
            writer.write(frame.pixels[None], [frame.time_s - start])


def _clip_settings(
    pipeline: LatentVideoPipeline, clip: Path, meta: VideoMeta, num_frames: int, source_frames: SourceFrames
) -> ClipSettings:
    if num_frames < 1:
        raise UsageError(f"num_frames={num_frames} must be at least 1.")
    return ClipSettings(
        path=str(clip.resolve()),
        sha256=sha256_of(clip),
        width=meta.width,
        height=meta.height,
        fps=str(meta.fps),
        num_frames=meta.num_frames,
        num_added=num_frames,
        is_retimed=retiming(meta.fps, pipeline.config.fps) != 1,
        source_frames=source_frames,
    )


def _rate(settings: FilmSettings) -> Fraction:
    clip = _clip_of(settings)
    return Fraction(settings.model_fps) / Fraction(clip.fps) if clip.is_retimed else Fraction(1)


def _clip_of(settings: FilmSettings) -> ClipSettings:
    if settings.clip is None:
        raise CheckpointError("the run's record names no clip to continue.")
    return settings.clip


def _around(side: float, multiple: int) -> tuple[int, int]:
    low = max(1, math.floor(side / multiple))
    return low * multiple, (low + 1) * multiple
