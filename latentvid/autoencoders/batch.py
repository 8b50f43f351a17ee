"""Many clips to latent files: what is done already is left alone, what fails stops no other, a plan costs no pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from latentvid.autoencoders.base import BaseAutoencoder
from latentvid.autoencoders.codec import OnFrames, encode_file
from latentvid.autoencoders.latent_file import LatentFile, Precision
from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError, UsageError
from latentvid.core.shapes import VideoShape
from latentvid.video.numbered import clip_bytes, clip_exists, clip_sha256, numbered_pictures
from latentvid.video.reader import open_video
from latentvid.video.scan import DEINTERLACED, INTERLACED

Job = tuple[Path, Path]
"""A clip, and the latent file that it becomes."""


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """What, besides clip and encoder, a latent file depends on."""

    precision: Precision = "fp32"
    max_frames: int = 0
    """Frames from the first on; 0 for all."""
    allow_truncated: bool = False
    """Encode what can be read of clips that break off."""
    fps: Fraction | None = None
    """Of numbered pictures and of streams that state no rate."""
    deinterlace: bool = False


def encode_files(
    autoencoder: BaseAutoencoder,
    jobs: Iterable[Job],
    settings: EncodeSettings | None = None,
    *,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
) -> Iterator[dict[str, Any]]:
    """Encode clip after clip; yield for each what was done, with its `status`: encoded, skipped or failed.

    Clips whose latent file exists and is the one that would be made (the same bytes of the clip, the same encoder, the
    same settings) are skipped, so that an interrupted batch goes on where it stopped and ends with the same files.

    Raises:
        ResourceError: memory or disk do not suffice; the other clips would fare no better.
    """
    settings = settings or EncodeSettings()
    space = autoencoder.latent_space()
    for source, target in jobs:
        try:
            if not overwrite and target.is_file() and clip_exists(source):
                yield _skipped(space, source, target, settings)
                continue
            done = encode_file(
                autoencoder,
                source,
                target,
                precision=settings.precision,
                max_frames=settings.max_frames,
                allow_truncated=settings.allow_truncated,
                fps=settings.fps,
                deinterlace=settings.deinterlace,
                overwrite=overwrite,
                on_frames=on_frames,
            )
            yield {"status": "encoded", **done}
        except ResourceError:
            raise
        except LatentVidError as error:
            yield failure(source, error)


def difference(latent_space: str, source: Path, target: Path, settings: EncodeSettings) -> str | None:
    """Return in what a latent file is not the one that encoding `source` would make; None where it is.

    Args:
        latent_space: the encoder's.
    """
    try:
        file = LatentFile(target)
    except CheckpointError:
        return "it is damaged, or no latent file"
    meta = file.meta
    if meta.latent_space != latent_space:
        return f"it was made by {meta.vae or 'another autoencoder'}"
    if file.precision != {"fp32": "F32", "fp16": "F16"}[settings.precision]:
        return f"its values are {file.precision}"
    if meta.max_frames != settings.max_frames:
        return f"it was made with --max-frames {meta.max_frames}" if meta.max_frames else "it holds the whole clip"
    if meta.is_truncated and not settings.allow_truncated:
        return "it was made of a clip that breaks off"
    if settings.fps is not None and meta.fps != settings.fps and numbered_pictures(source) is not None:
        return f"it was made at {float(meta.fps):g} frames per second"
    if (INTERLACED if settings.deinterlace else DEINTERLACED) in meta.source_notes:
        return f"it was made {'without' if settings.deinterlace else 'with'} --deinterlace"
    # The size first: it costs no reading. Files of older versions do not say it.
    is_same = meta.source_bytes in (0, clip_bytes(source)) and meta.source_sha256 == clip_sha256(source)
    return None if is_same else "it was made of another clip"


def plan_encode(
    autoencoder: BaseAutoencoder, source: Path, target: Path, settings: EncodeSettings | None = None
) -> dict[str, Any]:
    """Return what encoding a clip would make, without decoding more than a frame; sizes in bytes.

    Raises:
        ResourceError: one frame does not fit into the autoencoder's `max_memory`.
    """
    settings = settings or EncodeSettings()
    try:
        with open_video(source, fps=settings.fps, deinterlace=settings.deinterlace) as reader:
            meta = reader.meta
    except LatentVidError as error:
        return failure(source, error)
    num_frames = min(meta.num_frames, settings.max_frames or meta.num_frames)
    shape = autoencoder.latent_shape(VideoShape(1, num_frames, meta.height, meta.width))
    tensors = 2 if autoencoder.is_gaussian else 1
    return {
        "status": "planned",
        "source": str(source),
        "output": str(target),
        "num_frames": num_frames,
        "latents": list(shape.dims[1:]),
        "num_bytes": shape.num_bytes * tensors // (2 if settings.precision == "fp16" else 1),
        "frames_per_pass": autoencoder.frames_per_encode(meta.height, meta.width),
        "notes": list(meta.notes),
    }


def _skipped(latent_space: str, source: Path, target: Path, settings: EncodeSettings) -> dict[str, Any]:
    """Return the record of a clip that is done.

    Raises:
        UsageError: there is a file in its place that is another.
    """
    why = difference(latent_space, source, target, settings)
    if why:
        raise UsageError(f"{target} exists, and {why}; pass --overwrite to replace it.")
    return {
        "status": "skipped",
        "source": str(source),
        "output": str(target),
        "num_frames": LatentFile(target).num_frames,
        "reason": "done before",
    }


def failure(source: Path, error: LatentVidError) -> dict[str, Any]:
    """Return the record of a clip that could not be encoded."""
    return {"status": "failed", "source": str(source), "error": str(error), "exit_code": error.exit_code}
