"""Video files to latent files and back, as streams: no step holds more than a chunk of frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import LatentFile, LatentWriter, Precision, describe
from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError
from latentvid.core.files import sha256_of
from latentvid.core.shapes import VideoShape
from latentvid.video.frame import Frame
from latentvid.video.pixels import frames_to_tensor
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter

OnFrames = Callable[[int], object]
"""Called with the number of frames just done."""
Job = tuple[Path, Path]
"""A clip, and the latent file that it becomes."""
CHUNK_FRAMES = 16


def encode_file(
    autoencoder: ImageAutoencoder,
    source: str | Path,
    target: str | Path,
    *,
    precision: Precision = "fp32",
    allow_truncated: bool = False,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
) -> dict[str, Any]:
    """Encode a clip of any size and length into a latent file; return what was done, JSON-able.

    Raises:
        InputError: the clip cannot be read, or breaks off (without `allow_truncated`).
        UsageError: the target exists (without `overwrite`).
        ResourceError: one frame does not fit into the autoencoder's `max_memory`, or the disk is full.
    """
    source = Path(source)
    with open_video(source, allow_truncated=allow_truncated) as reader:
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
            source_sha256=sha256_of(source),
        )
        down, right = about.padding
        most = min(CHUNK_FRAMES, autoencoder.frames_per_encode(meta.height + down, meta.width + right))
        num_frames = 0
        with LatentWriter(target, about, precision=precision, overwrite=overwrite) as writer:
            for frames in _batches(reader.frames(), most):
                for mean, logvar in autoencoder.encode_posterior([frames_to_tensor(frames)]):
                    writer.write(mean, [frame.time_s for frame in frames], logvar)
                num_frames += len(frames)
                if on_frames:
                    on_frames(len(frames))
        notes = list(reader.meta.notes)
    return {"source": str(source), "output": str(target), "num_frames": num_frames, "notes": notes}


def encode_files(
    autoencoder: ImageAutoencoder,
    jobs: Iterable[Job],
    *,
    precision: Precision = "fp32",
    allow_truncated: bool = False,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
) -> Iterator[dict[str, Any]]:
    """Encode clip after clip; yield for each what was done, with its `status`: encoded, skipped or failed.

    Clips whose latent file exists and was made from the same bytes by the same encoder are skipped, so that an
    interrupted batch goes on where it stopped.

    Raises:
        ResourceError: memory or disk do not suffice; the other clips would fare no better.
    """
    for source, target in jobs:
        try:
            if not overwrite and is_encoded(autoencoder, source, target):
                yield {"status": "skipped", "source": str(source), "output": str(target)}
                continue
            done = encode_file(
                autoencoder,
                source,
                target,
                precision=precision,
                allow_truncated=allow_truncated,
                overwrite=overwrite,
                on_frames=on_frames,
            )
            yield {"status": "encoded", **done}
        except ResourceError:
            raise
        except LatentVidError as error:
            yield _failed(source, error)


def is_encoded(autoencoder: ImageAutoencoder, source: Path, target: Path) -> bool:
    """Say whether `target` holds the latents of just this clip and this encoder."""
    if not target.is_file():
        return False
    try:
        meta = LatentFile(target).meta
    except CheckpointError:
        return False
    return meta.latent_space == autoencoder.latent_space() and meta.source_sha256 == sha256_of(source)


def plan_encode(autoencoder: ImageAutoencoder, source: Path, target: Path, precision: Precision) -> dict[str, Any]:
    """Return what encoding a clip would make, without decoding a frame; sizes in bytes.

    Raises:
        ResourceError: one frame does not fit into the autoencoder's `max_memory`.
    """
    try:
        with open_video(source) as reader:
            meta = reader.meta
    except LatentVidError as error:
        return _failed(source, error)
    shape = autoencoder.latent_shape(VideoShape(1, meta.num_frames, meta.height, meta.width))
    tensors = 2 if autoencoder.is_gaussian else 1
    return {
        "status": "planned",
        "source": str(source),
        "output": str(target),
        "num_frames": meta.num_frames,
        "latents": list(shape.dims[1:]),
        "num_bytes": shape.num_bytes * tensors // (2 if precision == "fp16" else 1),
        "frames_per_pass": autoencoder.frames_per_encode(meta.height, meta.width),
    }


def decode_file(
    autoencoder: ImageAutoencoder,
    source: str | Path,
    target: str | Path,
    *,
    any_vae: bool = False,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
    **writing: Any,
) -> dict[str, Any]:
    """Decode a latent file into a video of the recorded size, frame times and colour matrix; return what was done.

    Args:
        any_vae: accept an autoencoder that the latents were not made for.
        writing: options of `VideoWriter` (codec, crf, preset).

    Raises:
        CheckpointError: the file is damaged, or the autoencoder does not fit it.
        UsageError: the target exists (without `overwrite`), or cannot hold such a video.
    """
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
    return {"source": str(source), "output": str(target), "num_frames": done, "duration_s": duration}


def _failed(source: Path, error: LatentVidError) -> dict[str, Any]:
    return {"status": "failed", "source": str(source), "error": str(error), "exit_code": error.exit_code}


def _decoded(autoencoder: ImageAutoencoder, latents: LatentFile) -> Iterator[Tensor]:
    return autoencoder.decode(latents.chunks(CHUNK_FRAMES), size=(latents.meta.height, latents.meta.width))


def _from_zero(times: list[Fraction]) -> list[Fraction]:
    """Return times moved so that none is negative, which video files cannot hold."""
    start = min(Fraction(0), times[0])
    return [time - start for time in times]


def _batches(frames: Iterator[Frame], most: int) -> Iterator[list[Frame]]:
    while batch := list(itertools.islice(frames, most)):
        yield batch
