"""How well autoencoders give clips back: encode, decode, compare, one window of frames in memory at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.shapes import LatentShape, VideoShape
from latentvid.evaluation.pictures import comparison_strip, picture_indices
from latentvid.evaluation.report import ClipResult, Report
from latentvid.metrics import METRICS
from latentvid.metrics.curve import PsnrCurve
from latentvid.metrics.metric import Metric
from latentvid.video.numbered import clip_sha256
from latentvid.video.pixels import center_crop, frames_to_tensor, pad_to_multiple, resize, to_uint8
from latentvid.video.reader import AS_STATED, Reading

DEFAULT_METRICS = ("psnr", "ssim", "flicker")

Size = int | tuple[int, int] | None
"""Pixels: the shorter side, or (height, width) filled and cropped from the middle, or None for the clip's own."""


class Autoencoder(Protocol):
    """What is evaluated."""

    def latent_shape(self, video: VideoShape) -> LatentShape: ...
    def encode(self, frames: Iterable[Tensor]) -> Iterator[Tensor]: ...  # [t 3 h w] in [-1, 1] -> [c t' h' w']
    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]: ...  # -> [t 3 h w]


def evaluate_reconstruction(
    autoencoders: Mapping[str, Autoencoder],
    clips: Sequence[str | Path],
    *,
    metrics: Sequence[str] | Mapping[str, Metric] = DEFAULT_METRICS,
    max_frames: int | None = None,
    size: Size = None,
    chunk_frames: int = 8,
    chunk_check_frames: int = 16,
    num_pictures: int = 8,
    about: Mapping[str, Any] | None = None,
    reading: Reading = AS_STATED,
    on_clip: Callable[[str, str], None] | None = None,
) -> Report:
    """Send every clip through every autoencoder and measure what comes back.

    Args:
        autoencoders: by name; the first is what the others are compared with.
        clips: video files. One that cannot be read goes to `Report.failures`; the others are done.
        metrics: kinds, built with their defaults, or ready ones by name (each is reset here).
        max_frames: frames of each clip to use; None is all.
        size: see `Size`. Whatever the autoencoder needs in padding is added and undone.
        chunk_frames: frames handed to the encoder at a time.
        chunk_check_frames: frames at the start of each clip that are also decoded whole and cut in other ways, for
            `chunk_error`; 0 leaves that out.
        num_pictures: clips to make a strip of.
        about: what the report should say of the autoencoders (paths, hashes), JSON-able.
        reading: how clips are opened.
        on_clip: called with (clip, autoencoder) before each.

    Raises:
        UsageError: no clip, no autoencoder, or a metric that is not known.
        CheckpointError: an autoencoder gives back another number of frames than it got.
    """
    if not autoencoders or not clips:
        raise UsageError("evaluate reconstruction needs at least one autoencoder and one clip.")
    for name, value in (("max_frames", max_frames), ("chunk_frames", chunk_frames)):
        if value is not None and value < 1:
            raise UsageError(f"evaluate reconstruction: {name}={value} must be at least 1.")
    built = metrics if isinstance(metrics, Mapping) else {kind: METRICS.get(kind)() for kind in metrics}
    options = {"max_frames": max_frames, "size": size, "chunk_frames": chunk_frames}
    report = Report(list(autoencoders), _protocol(built, options, chunk_check_frames, about))
    labels = _labels([Path(clip) for clip in clips])
    strips = {label: _Strip() for label in list(labels)[:num_pictures]}
    for name, autoencoder in autoencoders.items():
        for metric in built.values():
            metric.reset()
        for label, path in labels.items():
            if label in report.failures:
                continue
            if on_clip:
                on_clip(label, name)
            clip = _Clip(path, reading, max_frames=max_frames, size=size, chunk_frames=chunk_frames)
            try:
                values, curve = _measure(autoencoder, clip, built, strips.get(label, _Strip(0)), name)
                if chunk_check_frames > 1:
                    values["chunk_error"] = chunk_error(autoencoder, clip.first(chunk_check_frames))
            except InputError as error:
                report.failures[label] = str(error)
                continue
            report.sources.setdefault(label, clip_sha256(path))
            report.results.append(ClipResult(label, name, len(curve), *clip.shown_size, values, curve))
        report.over_set[name] = _over_set(built)
    order = list(labels)
    report.results.sort(key=lambda result: order.index(result.clip))
    report.pictures = {label: strip.picture() for label, strip in strips.items() if label not in report.failures}
    return report


def reconstruct(autoencoder: Autoencoder, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Stream chunks [t 3 h w] in [-1, 1] through encode and decode; yield (source, decoded) pairs that line up.

    Sizes are padded to what the autoencoder needs and cut back. Only the frames between the encoder's and the
    decoder's position are held.

    Raises:
        CheckpointError: more or fewer frames come back than went in.
    """
    waiting = _Tee(chunks)
    multiple = spatial_multiple(autoencoder)
    padded = (pad_to_multiple(chunk, multiple)[0] for chunk in waiting)
    count = 0
    for decoded in autoencoder.decode(autoencoder.encode(padded)):
        count += len(decoded)
        added = count - waiting.count
        if 0 < added <= _padding(autoencoder, waiting.count):  # frames that filled up the last latents
            decoded, count = decoded[: max(0, len(decoded) - added)], waiting.count
        source = waiting.take(len(decoded))
        if source is None:
            raise _miscounted(count, waiting.count)
        height, width = source.shape[-2:]
        yield source, decoded[..., :height, :width].float().cpu()
    if count != waiting.count:
        raise _miscounted(count, waiting.count)


def _padding(autoencoder: Autoencoder, num_frames: int) -> int:
    """Return how many frames the autoencoder adds at the end of that many, which it gives back as well."""

    def latents(frames: int) -> int:
        return autoencoder.latent_shape(VideoShape(1, frames, 1024, 1024)).frames

    longest = num_frames
    while latents(longest + 1) == latents(num_frames):
        longest += 1
    return longest - num_frames


def spatial_multiple(autoencoder: Autoencoder) -> int:
    """Return by how many pixels per side one latent grows, which frame sizes must be multiples of."""
    side = 1024
    return side // autoencoder.latent_shape(VideoShape(1, 1, side, side)).height


@torch.no_grad()
def chunk_error(autoencoder: Autoencoder, frames: Tensor, *, cuts: Sequence[int] = (1, 3)) -> float:
    """Return the largest absolute difference, in [-1, 1], between decoding [t 3 h w] whole and in parts.

    Args:
        cuts: latents per part, each tried in turn.
    """
    padded, _ = pad_to_multiple(frames, spatial_multiple(autoencoder))
    latents = torch.cat(list(autoencoder.encode(iter([padded]))), dim=1)
    whole = torch.cat(list(autoencoder.decode(iter([latents]))))
    worst = 0.0
    for cut in cuts:
        parts = torch.cat(list(autoencoder.decode(iter(latents.split(cut, dim=1)))))
        if parts.shape != whole.shape:
            raise CheckpointError(f"decoded in parts the clip has {len(parts)} frames, decoded whole {len(whole)}.")
        worst = max(worst, float((parts.float() - whole.float()).abs().max()))
    return worst


@torch.no_grad()
def _measure(
    autoencoder: Autoencoder, clip: _Clip, metrics: Mapping[str, Metric], strip: _Strip, name: str
) -> tuple[dict[str, float], list[float]]:
    """Return the values of one clip, and the PSNR of each of its frames."""
    curve = PsnrCurve()
    watching = [curve, *metrics.values()]
    for metric in watching:
        if not metric.is_over_set:
            metric.reset()
    indices = picture_indices(clip.num_frames, strip.num_frames)
    num_frames, seconds = 0, 0.0
    pairs = reconstruct(autoencoder, clip.chunks())
    while True:
        start = time.perf_counter()
        pair = next(pairs, None)
        seconds += time.perf_counter() - start
        if pair is None:
            break
        source, decoded = pair
        for metric in watching:
            metric.update(decoded, source)
        strip.keep(name, num_frames, indices, source, decoded)
        num_frames += len(source)
    if not num_frames:
        raise InputError(f"{clip.path}: holds no frame to compare.")
    for metric in watching:
        metric.end_clip()
    values = {k: v for metric in metrics.values() if not metric.is_over_set for k, v in metric.compute().items()}
    values["seconds_per_frame"] = max(0.0, seconds - clip.reading_s) / num_frames
    return values, curve.curve()


class _Tee:
    """Hands chunks on to the encoder and keeps them until their decoded frames have come."""

    def __init__(self, chunks: Iterable[Tensor]) -> None:
        self.count = 0
        self._chunks = chunks
        self._waiting: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self._chunks:
            self.count += len(chunk)
            self._waiting.append(chunk)
            yield chunk

    def take(self, num_frames: int) -> Tensor | None:
        """Return the next frames that wait, or None where there are not so many."""
        waiting = torch.cat(self._waiting) if self._waiting else None
        if waiting is None or len(waiting) < num_frames:
            return None
        self._waiting = [waiting[num_frames:]]
        return waiting[:num_frames]


class _Clip:
    """A file as float chunks of the wanted size, with the time that reading took."""

    def __init__(self, path: Path, reading: Reading, *, max_frames: int | None, size: Size, chunk_frames: int) -> None:
        self.reading = reading
        self.path, self.max_frames, self.size, self.chunk_frames = path, max_frames, size, chunk_frames
        self.reading_s = 0.0
        self.shown_size = (0, 0)

    @property
    def num_frames(self) -> int:
        """Frames that are there, at most `max_frames`."""
        with self.reading.open(self.path) as reader:
            return min(reader.meta.num_frames, self.max_frames or reader.meta.num_frames)

    def chunks(self) -> Iterator[Tensor]:
        with self.reading.open(self.path) as reader:
            frames = reader.frames(0, self.max_frames)
            while True:
                start = time.perf_counter()
                pictures = [frame.pixels for frame in itertools.islice(frames, self.chunk_frames)]
                chunk = fit(frames_to_tensor(pictures), self.size) if pictures else None
                self.reading_s += time.perf_counter() - start
                if chunk is None:
                    return
                self.shown_size = (chunk.shape[-2], chunk.shape[-1])
                yield chunk

    def first(self, num_frames: int) -> Tensor:
        """Return the first frames as one tensor."""
        gathered: list[Tensor] = []
        for chunk in self.chunks():
            gathered.append(chunk)
            if sum(map(len, gathered)) >= num_frames:
                break
        return torch.cat(gathered)[:num_frames]


def fit(video: Tensor, size: Size) -> Tensor:
    """Resize [t 3 h w] as `Size` says."""
    if size is None:
        return video
    height, width = video.shape[-2:]
    if isinstance(size, int):
        scale = size / min(height, width)
        return resize(video, max(1, round(height * scale)), max(1, round(width * scale)))
    scale = max(size[0] / height, size[1] / width)
    grown = resize(video, max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    return center_crop(grown, *size)


class _Strip:
    """The frames of one clip that its picture shows."""

    def __init__(self, num_frames: int = 4) -> None:
        self.num_frames = num_frames
        self._source: dict[int, Tensor] = {}
        self._decoded: dict[str, dict[int, Tensor]] = {}

    def keep(self, name: str, first: int, indices: Sequence[int], source: Tensor, decoded: Tensor) -> None:
        """Keep those of the frames from `first` on that are in `indices`."""
        for index in indices:
            if first <= index < first + len(source):
                self._source[index] = to_uint8(source[index - first])
                self._decoded.setdefault(name, {})[index] = to_uint8(decoded[index - first])

    def picture(self) -> Image.Image:
        indices = sorted(self._source)
        decoded = {name: [frames[i] for i in indices] for name, frames in self._decoded.items()}
        return comparison_strip([self._source[i] for i in indices], decoded, indices)


def _miscounted(given: int, taken: int) -> CheckpointError:
    return CheckpointError(f"the autoencoder gave back {given} frames for {taken}; what it makes cannot be compared.")


def _over_set(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {key: value for metric in metrics.values() if metric.is_over_set for key, value in metric.compute().items()}


def _protocol(
    metrics: Mapping[str, Metric], options: dict[str, Any], chunk_check_frames: int, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "metrics": {name: metric.protocol() for name, metric in metrics.items()},
        "mean": "over clips, each counting once",
        **options,
        "chunk_error": f"largest difference, in [-1, 1], of cut from whole decoding of {chunk_check_frames} frames",
        "seconds_per_frame": "encoding and decoding, wall clock, without reading",
        "autoencoders": dict(about or {}),
    }


def _labels(paths: Sequence[Path]) -> dict[str, Path]:
    """Name clips by their file names, and by their folders too where those repeat."""
    names = [path.name for path in paths]
    labels: dict[str, Path] = {}
    for path in paths:
        label = path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        labels[label if label not in labels else str(path)] = path
    return labels
