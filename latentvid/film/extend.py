"""Going on where a clip of the user's ends: its tail becomes latents, and the film goes on from these.

The tail's recorded states, which reuse-and-diffuse ("Reuse and Diffuse", arXiv 2309.03549) asks of the window before,
come from inverting the clip under the model (DDIM inversion, arXiv 2010.02502).
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentWriter
from latentvid.core.config import validate
from latentvid.core.errors import InputError, UsageError
from latentvid.core.files import atomic_path
from latentvid.extension.rules import ReuseRule, Tail
from latentvid.film.anchors import prepare_anchors
from latentvid.film.assembly import try_joining
from latentvid.film.clip_shots import clip_shots, why_not_stored
from latentvid.film.complete import complete
from latentvid.film.folder import SEGMENT_SUFFIXES, Carry, RunFolder, refuse_same, save_carry
from latentvid.film.handover import HandOver
from latentvid.film.latents import FilmLatents, end_of_film, run_of_film
from latentvid.film.make import FilmReport, OnProgress, last_of, latent_meta, resumable, sampling_of
from latentvid.film.options import FilmOptions, film_settings
from latentvid.film.runs import consistent, new_run, weights_of
from latentvid.film.settings import ClipSettings, FilmSettings, OwnFilm, Retime, SourceFrames, clip_of
from latentvid.film.timing import Timing, model_rate
from latentvid.pipeline import LatentVideoPipeline, Sampling
from latentvid.sampling.inversion import invert
from latentvid.sampling.staged import guided_steps, overlap_frames
from latentvid.video.append import NotAppendable
from latentvid.video.meta import VideoMeta
from latentvid.video.numbered import clip_exists, clip_sha256
from latentvid.video.pixels import resize, to_float
from latentvid.video.planes import planes_of
from latentvid.video.reader import AS_STATED, Reading

if TYPE_CHECKING:
    from typing_extensions import Unpack

HAND_OVER_S = 1.0
"""How long the clip's look goes over into the model's, if not told."""
INVERSION_CALLS = 3
"""Denoiser calls per step of the inversion."""


def extend_clip(
    pipeline: LatentVideoPipeline,
    clip: str | Path,
    out: str | Path,
    *,
    num_frames: int,
    prompt: str = "",
    source_frames: SourceFrames = "auto",
    retime: Retime = "blend",
    hand_over_s: float = HAND_OVER_S,
    reading: Reading = AS_STATED,
    on_progress: OnProgress | None = None,
    **options: Unpack[FilmOptions],
) -> FilmReport:
    """Continue a clip by `num_frames` frames, counted at the clip's own rate. The clip itself is never changed.

    The clip is resized to a size of the model's near its shape, and the new frames back to the clip's; nothing is
    cropped. Where the rates differ by more than a tenth, the model sees the clip at its own rate and new frames are
    fitted to the clip's. The clip's sound, subtitles, chapters and so on are kept; the report's notes name what the
    film's container does not take of them.

    Args:
        clip: any video that can be read.
        out: `.mp4`, `.m4v`, `.mov` or `.mkv`.
        source_frames: how the clip's frames get there: "copy" (packets as they are, else refused), "lossless" (every
            bit, as the clip stores it, in a large file), "reencode" (at `crf`), or "auto": copied where that is
            possible, else lossless.
        retime: how new frames get to the clip's rate where the model has another: "blend" (mixed of two neighbours),
            "repeat" (the nearest one), or "none": the model takes the clip's frames, and gives its own, one for one.
        hand_over_s: seconds in which the look of the clip's last frame, its fine detail above all, goes over into that
            of the model's frames; 0 is at once.
        reading: how the clip is opened: a rate for numbered pictures, whether to deinterlace.

    Other arguments are those of `generate_film`; frame numbers in `prompts` count the new frames.

    Raises:
        InputError: the clip cannot be read.
        UsageError: an output that exists or cannot hold it, or settings that cannot be.
        ResourceError: disk or device gave out; the run can be resumed.
    """
    clip, out = Path(clip), Path(out)
    if out.suffix.lower() not in SEGMENT_SUFFIXES:
        raise UsageError(f"{out}: an extended clip is written as {', '.join(SEGMENT_SUFFIXES)}.")
    refuse_same(clip, out, options.get("contact_sheet"))
    with reading.open(clip) as reader:
        meta = reader.counted()
    facts = _clip_settings(pipeline, clip, meta, num_frames, source_frames, retime, hand_over_s, reading)
    own = RunFolder.open(facts.own.run) if facts.own else None
    size = (own.settings.height, own.settings.width) if own else model_size(pipeline, meta.height, meta.width)
    settings = film_settings(
        pipeline,
        out,
        options,
        kind="extend",
        prompt=prompt,
        num_frames=Timing.between(meta.fps, pipeline.config.fps, retime, facts.shown_before, facts.made_before).needed(
            num_frames
        ),
        height=size[0],
        width=size[1],
        fps=facts.fps,
        clip=facts,
    )
    with (
        new_run(pipeline, settings, out, options, clip, given=given_frames(settings)) as run,
        consistent(own) if own else nullcontext(),
    ):
        with resumable(run.path):
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


def prepare_clip(run: RunFolder, pipeline: LatentVideoPipeline) -> None:
    """Write what the first window starts from: the clip's tail, as if the model had just made it.

    Raises:
        InputError: the clip is gone or was changed.
    """
    check_clip(run)
    settings = run.settings
    clip = clip_of(settings)
    if clip.how is None:
        _decide(run)
    if run.carry(0).is_file():
        return
    with torch.no_grad():
        if clip.own is None:
            latents, carry = encoded_end(pipeline, settings)
        else:
            latents, carry = end_of_own_film(pipeline, settings, clip.own)
        carry = carry or end_of_latents(pipeline, settings, latents)
    meta = latent_meta(pipeline, settings)
    with LatentWriter(run.given, meta, overwrite=True) as writer:
        writer.write(latents, [number / meta.fps for number in range(latents.shape[1])])
    _hand_over(run, clip, carry)
    if clip.own is not None:
        _refer(run, RunFolder.open(clip.own.run))
    save_carry(run.carry(0), carry)


def check_clip(run: RunFolder) -> None:
    """Refuse to go on from another clip than the run was begun for.

    Raises:
        InputError: it is gone or was changed.
    """
    clip = clip_of(run.settings)
    if not clip_exists(Path(clip.path)) or clip_sha256(Path(clip.path)) != clip.sha256:
        raise InputError(f"{clip.path}: the clip that {run.path} continues is gone or was changed.")


def _refer(run: RunFolder, own: RunFolder) -> None:
    """Hold the new windows to what a film of ours began with: many short films drift no more than a long one."""
    if own.settings.prompts is not None:  # its last scene is what goes on
        return
    begins = own.latents(0) if own.settings.clip is None else own.given
    with atomic_path(run.reference) as beside:
        shutil.copyfile(own.reference if own.reference.is_file() else begins, beside)


def _hand_over(run: RunFolder, clip: ClipSettings, carry: Carry) -> None:
    """Write what the new frames lack of the clip's look: found here, or by the film of ours that goes on."""
    if not clip.hand_over_frames:
        return
    if clip.own is not None:
        found = HandOver.load(RunFolder.open(clip.own.run).hand_over, clip.hand_over_frames)
    else:
        assert carry.last_frames is not None
        found = HandOver.between(_last_picture(clip), carry.last_frames[-1], clip.hand_over_frames)
    found.save(run.hand_over)


def _last_picture(clip: ClipSettings) -> Tensor:
    """Return the clip's last frame at its own size, [3 h w] in [-1, 1]."""
    last = None
    for start in (max(0, clip.num_frames - 1), 0):  # it may hold fewer frames than it claims
        with clip.reading.open(clip.path) as reader:
            for frame in reader.frames(start):
                last = frame.pixels
        if last is not None:
            return to_float(last)
    raise InputError(f"{clip.path}: no frames to go on from.")


def given_frames(settings: FilmSettings) -> int:
    """Return how many frames the plan counts before the first new one."""
    own = clip_of(settings).own
    # Counting on from a film of ours, new frames take noise that none of its own had.
    return settings.rule.overlap if own is None else max(settings.rule.overlap, own.num_frames)


def encoded_end(pipeline: LatentVideoPipeline, settings: FilmSettings) -> tuple[Tensor, Carry | None]:
    """Return the latents of the clip's last frames, a window of them, [c t h w]."""
    frames = context_frames(settings, pipeline.config.num_frames)
    return torch.cat(list(pipeline.autoencoder.encode([frames])), dim=1), None


def end_of_own_film(pipeline: LatentVideoPipeline, settings: FilmSettings, own: OwnFilm) -> tuple[Tensor, Carry | None]:
    """Return the latents that a film of ours ended with, and what its next window would have started from, if known.

    Raises:
        InputError: its run folder is gone, or holds another film by now.
    """
    clip = clip_of(settings)
    run = run_of_film(Path(clip.path), clip.sha256, pipeline)
    is_known = run is not None and run.path.resolve() == Path(own.run).resolve()
    if run is None or not is_known or FilmLatents(run).stop != own.num_frames:
        raise InputError(f"{own.run}, whose latents the film goes on from, is gone or was changed.")
    latents = FilmLatents(run).tail(pipeline.config.num_frames)
    return latents, end_of_film(run, settings, weights_of(pipeline), pipeline.compute_device)


def end_of_latents(pipeline: LatentVideoPipeline, settings: FilmSettings, latents: Tensor) -> Carry:
    """Return what a window starts from that goes on after these latents [c t h w], as if the model had made them."""
    sampling = sampling_of(pipeline, settings)
    rule, latents = sampling.rule, latents.to(pipeline.compute_device)
    decoder = pipeline.autoencoder.film_decoder()
    frames = decoder.push(latents)
    tail = Tail(latents[None, :, -rule.overlap :])
    if isinstance(rule, ReuseRule):
        tail = invert_tail(pipeline, sampling, settings, latents[None], rule)
    return Carry(tail, decoder.state(), last_of(frames.cpu(), None))


def context_frames(settings: FilmSettings, count: int) -> Tensor:
    """Return the clip's last `count` frames at the model's rate and size, [t 3 h w] in [-1, 1].

    A clip that is shorter stands still before it begins: its first frame is repeated.
    """
    clip = clip_of(settings)
    step = 1 / Timing.of(settings, clip).rate
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
    clip = clip_of(settings)
    with clip.reading.open(clip.path) as reader:
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


def _decide(run: RunFolder) -> None:
    """Settle how the clip's frames get into the film, by trying it before any window is made.

    Raises:
        InputError: the clip is damaged.
        UsageError: the film's container does not take the clip's sound.
    """
    clip = clip_of(run.settings)
    wanted, why, not_stored = clip.source_frames, "", why_not_stored(clip)
    if wanted in ("auto", "copy"):
        why = not_stored
        try:
            if not why:
                _record_choice(run, try_joining(run, {"how": "copy"}))
                return
        except NotAppendable as reason:
            why = str(reason)
        if wanted == "copy":
            raise UsageError(f"{clip.path}: its packets cannot be copied, because {why}; leave --source-frames away.")
    if wanted == "reencode":
        _record_choice(run, try_joining(run, {"how": "reencode"}))
        return
    lossless = {"how": "lossless", "why": why}
    if not not_stored and planes_of(clip.path).lossless_codec(run.film.suffix) is not None:
        with suppress(NotAppendable):  # where the file cannot say how the stored pictures are turned: upright ones can
            _record_choice(run, try_joining(run, {**lossless, "planes": "own"}))
            return
    try:
        _record_choice(run, try_joining(run, {**lossless, "planes": "rgb"}))
    except NotAppendable as error:
        raise UsageError(
            f"{clip.path}: cannot be joined without loss, because {error}; try --source-frames reencode."
        ) from error


def _record_choice(run: RunFolder, clip: ClipSettings) -> None:
    settings = run.settings.model_copy(update={"clip": clip})
    run.record = run.record.model_copy(update={"settings": settings})
    run.save()


def _clip_settings(
    pipeline: LatentVideoPipeline,
    clip: Path,
    meta: VideoMeta,
    num_frames: int,
    source_frames: SourceFrames,
    retime: Retime,
    hand_over_s: float,
    reading: Reading,
) -> ClipSettings:
    if num_frames < 1:
        raise UsageError(f"num_frames={num_frames} must be at least 1.")
    if hand_over_s < 0:
        raise UsageError(f"hand_over_s={hand_over_s:g} must not be negative.")
    digest = clip_sha256(clip)
    run = run_of_film(clip, digest, pipeline)
    shown, made, hand_over = 0, 0, round(hand_over_s * meta.fps)
    if run is not None:
        is_wanted, before = hand_over > 0, run.settings.clip
        hand_over = 0  # what we made lacks nothing, but may itself be handing over still
        if before is not None and before.retime == retime:
            shown, made = before.shown_before + before.num_added, before.made_before + run.settings.num_frames
            hand_over = before.hand_over_frames if is_wanted and shown < before.hand_over_frames else 0
    facts = {
        "path": str(clip.resolve()),
        "sha256": digest,
        "own": OwnFilm(run=str(run.path.resolve()), num_frames=FilmLatents(run).stop) if run else None,
        "width": meta.width,
        "height": meta.height,
        "fps": str(meta.fps),
        "num_frames": meta.num_frames,
        "pixel_aspect": str(meta.sample_aspect_ratio),
        "num_added": num_frames,
        "is_retimed": model_rate(meta.fps, pipeline.config.fps, retime) != 1,
        "retime": retime,
        "shown_before": shown,
        "made_before": made,
        "hand_over_frames": hand_over,
        "source_frames": source_frames,
        "given_fps": None if reading.fps is None else str(reading.fps),
        "deinterlace": reading.deinterlace,
    }
    return validate(facts, ClipSettings, source=clip)


def _around(side: float, multiple: int) -> tuple[int, int]:
    low = max(1, math.floor(side / multiple))
    return low * multiple, (low + 1) * multiple
