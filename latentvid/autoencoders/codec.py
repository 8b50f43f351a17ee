"""Video files to latent files and back, as streams: no step holds more than a chunk of frames."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from latentvid.autoencoders.base import BaseAutoencoder, first_frames
from latentvid.autoencoders.latent_file import LatentFile, LatentWriter, Precision, describe
from latentvid.core.errors import InputError
from latentvid.video.frame import Frame
from latentvid.video.numbered import clip_bytes, clip_exists, clip_sha256, numbered_pictures
from latentvid.video.pixels import frames_to_tensor
from latentvid.video.reader import open_video
from latentvid.video.sound import Sound, has_sound, picture_start
from latentvid.video.writer import VideoWriter

OnFrames = Callable[[int], object]
"""Called with the number of frames just done."""
CHUNK_FRAMES = 16
_MOST_DELAY_S = 1


def encode_file(
    autoencoder: BaseAutoencoder,
    source: str | Path,
    target: str | Path,
    *,
    precision: Precision = "fp32",
    max_frames: int = 0,
    allow_truncated: bool = False,
    fps: Fraction | None = None,
    deinterlace: bool = False,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
) -> dict[str, Any]:
    """Encode a clip of any size and length into a latent file; return what was done, JSON-able.

    Args:
        max_frames: encode only so many frames, from the first on; 0 for all.
        fps: the rate of numbered pictures and of streams that state none.
        deinterlace: take apart the fields of interlaced pictures first.

    Raises:
        InputError: the clip cannot be read, or breaks off (without `allow_truncated`).
        UsageError: the target exists (without `overwrite`).
        ResourceError: one frame does not fit into the autoencoder's `max_memory`, or the disk is full.
    """
    source, target = Path(source), Path(target)
    with open_video(source, allow_truncated=allow_truncated, fps=fps, deinterlace=deinterlace) as reader:
        meta = reader.meta
        about = describe(
            autoencoder,
            height=meta.height,
            width=meta.width,
            fps=meta.fps,
            time_base=meta.time_base,
            color_range=meta.color_range,
            color_matrix=meta.color_matrix,
            source_name=source.name,
            source_sha256=clip_sha256(source),
            source_bytes=clip_bytes(source),
            source_path=_seen_from(target.parent, source),
            sample_aspect_ratio=meta.sample_aspect_ratio,
            max_frames=max_frames,
        )
        down, right = about.padding
        most = min(CHUNK_FRAMES, autoencoder.frames_per_encode(meta.height + down, meta.width + right))
        num_frames = 0
        with LatentWriter(target, about, precision=precision, overwrite=overwrite) as writer:
            film = _Film(reader.frames(0, max_frames or None), most)
            for mean, logvar in autoencoder.encode_posterior(film):
                times = film.times(mean.shape[1] if autoencoder.temporal_factor == 1 else None)
                writer.write(mean, times, logvar)
                num_frames += len(times)
                if on_frames:
                    on_frames(len(times))
            notes = list(reader.meta.notes)
            is_cut = reader.meta.is_truncated and num_frames != max_frames
            writer.meta = replace(writer.meta, source_notes="; ".join(notes), is_truncated=is_cut)
    return {"source": str(source), "output": str(target), "num_frames": num_frames, "notes": notes}


def decode_file(
    autoencoder: BaseAutoencoder,
    source: str | Path,
    target: str | Path,
    *,
    any_vae: bool = False,
    audio_from: Path | None = None,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
    **writing: Any,
) -> dict[str, Any]:
    """Decode a latent file into a video of the recorded size, frame times, pixel aspect and colour matrix.

    Args:
        any_vae: accept an autoencoder that the latents were not made for.
        audio_from: a file whose sound is copied along; its first picture is taken for the latents' first.
        writing: options of `VideoWriter` (codec, crf, preset).

    Returns:
        What was done, JSON-able.

    Raises:
        CheckpointError: the file is damaged, or the autoencoder does not fit it.
        InputError: the file with the sound cannot be read.
        UsageError: the target exists (without `overwrite`), or cannot hold such a video or sound.
    """
    if audio_from is not None and numbered_pictures(audio_from) is not None:
        audio_from = None  # they have no sound
    latents = LatentFile(source)
    latents.check_fits(autoencoder, any_vae=any_vae)
    latents.verify()
    meta = latents.meta
    times = None if latents.is_regular else _from_zero(latents.times_s)
    color = cast(Literal["bt709", "bt601"], meta.color_matrix if meta.color_matrix in ("bt709", "bt601") else "bt709")
    writer = VideoWriter(
        target,
        fps=meta.fps,
        width=meta.width,
        height=meta.height,
        time_base=meta.time_base if times else None,
        color=color,
        sample_aspect_ratio=meta.sample_aspect_ratio,
        sound=_sound(audio_from, latents, times) if audio_from else None,
        overwrite=overwrite,
        **writing,
    )
    done = 0
    with writer:
        for video in _decoded(autoencoder, latents):
            writer.write(video, times[done : done + len(video)] if times else None)
            done += len(video)
            if on_frames:
                on_frames(len(video))
    duration = float(latents.times_s[-1] - latents.times_s[0] + 1 / meta.fps)
    tiles = autoencoder.tiles_per_frame(meta.height, meta.width)
    facts = {"tiles": tiles, "source": str(source), "output": str(target), "num_frames": done, "duration_s": duration}
    return {**facts, "has_audio": bool(audio_from) and has_sound(cast(Path, audio_from))}


def recorded_source(latents: LatentFile) -> Path:
    """Return the clip that a latent file was made of: where it lay then, seen from the latents, or beside them.

    Raises:
        InputError: it is at neither place, or has changed since.
    """
    meta = latents.meta
    if not meta.source_name:
        raise InputError(f"{latents.path} was made of no clip whose sound could be copied; name a file with sound.")
    places = [latents.path.parent / (meta.source_path or meta.source_name), latents.path.parent / meta.source_name]
    found = next((place for place in places if clip_exists(place)), None)
    if found is None:
        raise InputError(
            f"{places[0]}, the clip that {latents.path.name} was made of, is gone; name a file with sound."
        )
    if clip_sha256(found) != meta.source_sha256:
        raise InputError(f"{found} has changed since {latents.path.name} was made of it; name a file with sound.")
    return found


def _sound(path: Path, latents: LatentFile, times: list[Fraction] | None) -> Sound:
    first, last = (times[0], times[-1]) if times else (Fraction(0), (latents.num_frames - 1) / latents.meta.fps)
    return Sound(path, start_s=picture_start(path) - first, end_s=last + 1 / latents.meta.fps)


def _seen_from(folder: Path, file: Path) -> str:
    absolute = os.path.abspath(file)
    try:
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(absolute).as_posix()


def _decoded(autoencoder: BaseAutoencoder, latents: LatentFile) -> Iterator[Tensor]:
    size = (latents.meta.height, latents.meta.width)
    return first_frames(autoencoder.decode(latents.chunks(CHUNK_FRAMES), size=size), latents.num_frames)


def _from_zero(times: list[Fraction]) -> list[Fraction]:
    """Return times moved to begin at 0, unless they begin shortly after it: a delay of the pictures is kept.

    Video files hold no negative times, and the clocks of transport streams start anywhere.
    """
    start = times[0] if not 0 <= times[0] <= _MOST_DELAY_S else 0
    return [time - start for time in times]


class _Film:
    """Chunks of at most `most` frames [t 3 h w], and the times of those that were handed out."""

    def __init__(self, frames: Iterator[Frame], most: int) -> None:
        self._frames, self._most = frames, most
        self._times: list[Fraction] = []

    def __iter__(self) -> Iterator[Tensor]:
        while batch := list(itertools.islice(self._frames, self._most)):
            self._times += [frame.time_s for frame in batch]
            yield frames_to_tensor(batch)

    def times(self, num_frames: int | None) -> list[Fraction]:
        """Return the times, in seconds, of the next frames, or of all that were handed out; each once."""
        taken, self._times = self._times[:num_frames], self._times[len(self._times[:num_frames]) :]
        return taken
