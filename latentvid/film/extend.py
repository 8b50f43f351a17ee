"""Going on where a clip of the user's ends: its tail becomes latents, and the film goes on from these.

The tail's recorded states, which reuse-and-diffuse ("Reuse and Diffuse", arXiv 2309.03549) asks of the window before,
come from inverting the clip under the model (DDIM inversion, arXiv 2010.02502).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentWriter
from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import sha256_of
from latentvid.extension.plan import Window
from latentvid.extension.rules import ReuseRule, Tail
from latentvid.film.anchors import prepare_anchors
from latentvid.film.finish import publish, write_drift, write_sheet
from latentvid.film.folder import SEGMENT_SUFFIXES, Carry, RunFolder, run_path, save_carry
from latentvid.film.generate import complete, new_run, weights_of
from latentvid.film.joins import join_of
from latentvid.film.latents import FilmLatents, end_of_film, run_of_film
from latentvid.film.make import FilmReport, OnProgress, latent_meta, sampling_of
from latentvid.film.options import FilmOptions, film_settings
from latentvid.film.settings import ClipSettings, FilmSettings, OwnFilm, SourceFrames
from latentvid.pipeline import LatentVideoPipeline, Sampling
from latentvid.sampling.inversion import invert
from latentvid.sampling.staged import guided_steps, overlap_frames
from latentvid.temporal.context import StreamState
from latentvid.video.append import Joint, NotAppendable, append_segments, begins_with, joint_of
from latentvid.video.meta import VideoMeta
from latentvid.video.pixels import resize, to_float
from latentvid.video.rate import as_rate
from latentvid.video.reader import open_video
from latentvid.video.remux import concat_segments
from latentvid.video.writer import VideoWriter

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
    source_frames: SourceFrames = "auto",
    on_progress: OnProgress | None = None,
    **options: Unpack[FilmOptions],
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
    own = RunFolder.open(facts.own.run) if facts.own else None
    size = (own.settings.height, own.settings.width) if own else model_size(pipeline, meta.height, meta.width)
    settings = film_settings(
        pipeline,
        out,
        options,
        kind="extend",
        prompt=prompt,
        num_frames=model_frames_of(pipeline, meta.fps, num_frames),
        height=size[0],
        width=size[1],
        fps=facts.fps,
        clip=facts,
    )
    run = new_run(pipeline, settings, run_path(out), given=given_frames(settings))
    with run.locked():
        prepare_anchors(run, pipeline)
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
    if run.carry(0).is_file():
        return
    with torch.no_grad():
        latents, carry = encoded_end(pipeline, settings) if clip.own is None else own_end(pipeline, settings, clip.own)
        carry = carry or end_of_latents(pipeline, settings, latents)
    meta = latent_meta(pipeline, settings)
    with LatentWriter(run.given, meta, overwrite=True) as writer:
        writer.write(latents, [number / meta.fps for number in range(latents.shape[1])])
    save_carry(run.carry(0), carry)


def given_frames(settings: FilmSettings) -> int:
    """Return how many frames the plan counts before the first new one."""
    own = _clip_of(settings).own
    # Counting on from a film of ours, new frames take noise that none of its own had.
    return settings.rule.overlap if own is None else max(settings.rule.overlap, own.num_frames)


def encoded_end(pipeline: LatentVideoPipeline, settings: FilmSettings) -> tuple[Tensor, Carry | None]:
    """Return the latents of the clip's last frames, a window of them, [c t h w]."""
    frames = context_frames(settings, pipeline.config.num_frames)
    return torch.cat(list(pipeline.autoencoder.encode([frames])), dim=1), None


def own_end(pipeline: LatentVideoPipeline, settings: FilmSettings, own: OwnFilm) -> tuple[Tensor, Carry | None]:
    """Return the latents that a film of ours ended with, and what its next window would have started from, if known.

    Raises:
        InputError: its run folder is gone, or holds another film by now.
    """
    clip = _clip_of(settings)
    run = run_of_film(Path(clip.path), clip.sha256, pipeline)
    if run is None or FilmLatents(run).stop != own.num_frames:
        raise InputError(f"{own.run}, whose latents the film goes on from, is gone or was changed.")
    latents = FilmLatents(run).tail(pipeline.config.num_frames)
    return latents, end_of_film(run, settings, weights_of(pipeline), pipeline.unet.device)


def end_of_latents(pipeline: LatentVideoPipeline, settings: FilmSettings, latents: Tensor) -> Carry:
    """Return what a window starts from that goes on after these latents [c t h w], as if the model had made them."""
    sampling = sampling_of(pipeline, settings)
    rule, latents = sampling.rule, latents.to(pipeline.unet.device)
    state = StreamState()
    frames = torch.cat(list(pipeline.autoencoder.decode([latents], state=state)))
    tail = Tail(latents[None, :, -rule.overlap :])
    if isinstance(rule, ReuseRule):
        tail = invert_tail(pipeline, sampling, settings, latents[None], rule)
    return Carry(tail, state.detach(), frames[-1].cpu())


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
    setting = pipeline.setting(replace(sampling, guidance_scale=1.0), [prompt])
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
    join = join_of(run.film, clip.num_frames)
    return {**drift, **join.to_dict()}, [*notes_of(run.settings), join.in_words()]


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
    if clip.own is not None:
        notes.append(f"it goes on from the latents in {clip.own.run}, not from encoded frames.")
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
    digest = sha256_of(clip)
    run = run_of_film(clip, digest, pipeline)
    return ClipSettings(
        path=str(clip.resolve()),
        sha256=digest,
        own=OwnFilm(run=str(run.path.resolve()), num_frames=FilmLatents(run).stop) if run else None,
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
