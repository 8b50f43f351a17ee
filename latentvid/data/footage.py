"""Folders of footage as training clips: random crops in time and space, a function of (seed, index)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latentvid.core.errors import InputError
from latentvid.core.rng import Rng
from latentvid.data.captions import caption_of
from latentvid.data.text_files import warn_of_odd_bytes
from latentvid.video.footage import find_videos
from latentvid.video.reader import AS_STATED, Reading

_SURELY = 2
"""A file that claims so many times the frames that are needed has them, or nearly."""


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """A file that training can use."""

    path: Path
    num_frames: int
    """As counted or claimed; a crop that runs past the true end is moved back."""
    height: int
    width: int
    caption: str
    """First line of the `.txt` file of the same name, "" where there is none."""
    reading: Reading = AS_STATED
    """How it is opened."""


def scan(
    paths: Iterable[str | Path], *, min_frames: int = 1, reading: Reading = AS_STATED
) -> tuple[list[ClipInfo], list[tuple[Path, str]]]:
    """Return the usable files under `paths`, and the others each with the reason why it is skipped.

    Files that claim about as many frames as are needed are counted.

    Raises:
        InputError: a path does not exist or holds no video at all.
    """
    found: list[ClipInfo] = []
    skipped: list[tuple[Path, str]] = []
    odd: dict[Path, int] = {}
    for path in find_videos(paths, stills=min_frames == 1, numbered=reading.fps is not None):
        try:
            reader = reading.open(path)
            meta = reader.meta
            if min_frames > 1 and meta.num_frames < _SURELY * min_frames and not meta.is_truncated:
                meta = reader.counted()
        except InputError as error:
            skipped.append((path, str(error)))
            continue
        if meta.num_frames < min_frames:
            skipped.append((path, f"{path}: {meta.num_frames} frames, and {min_frames} are needed."))
        elif meta.is_truncated:
            skipped.append((path, f"{path}: breaks off before its end."))
        else:
            found.append(ClipInfo(path, meta.num_frames, meta.height, meta.width, caption_of(path, odd), reading))
    warn_of_odd_bytes(odd)
    return found, skipped


class FootageClips:
    """Endless random crops of footage. Item i is the same in every run and whatever was asked for before.

    Crops are square, as wide as chance has it between `size` and the whole picture, and resized to `size` with
    antialiasing; smaller pictures are enlarged. Frames of one crop share place, mirroring and stride.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        num_frames: int = 16,
        size: int = 128,
        strides: Sequence[int] = (1,),
        still_share: float = 0.0,
        seed: int = 0,
        *,
        mirror: bool = True,
        cache_bytes: int = 1 << 30,
    ) -> None:
        """Scan `paths` and keep no file open.

        Args:
            paths: files, folders, patterns.
            num_frames: frames of an item.
            size: height and width of an item in pixels.
            strides: every n-th frame; one of these at random, among those for which the file is long enough.
            still_share: share of the items that repeat one frame (a film that stands still).
            mirror: half of the items are flipped left to right. Turn it off where captions name directions.
            cache_bytes: the most memory for decoded clips.

        Raises:
            InputError: no file is usable; the sentence holds the first reason.
        """
        if num_frames < 1 or size < 1 or not strides or min(strides) < 1 or not 0 <= still_share <= 1:
            raise ValueError(f"{num_frames=} {size=} {strides=} {still_share=}: no clips can be made so")
        self.num_frames, self.size, self.strides, self.still_share = num_frames, size, tuple(strides), still_share
        self.mirror = mirror
        self.clips, self.skipped = scan(paths, min_frames=num_frames)
        if not self.clips:
            why = f" The first: {self.skipped[0][1]}" if self.skipped else ""
            raise InputError(f"{', '.join(map(str, paths))}: none of {len(self.skipped)} files can be used.{why}")
        self._rng = Rng(seed).child("footage")
        self._decoded = DecodedClips(cache_bytes)

    def item(self, index: int) -> tuple[Tensor, ClipInfo]:
        """Return crop number `index`, uint8 [t 3 h w], and the file that it is of.

        Raises:
            InputError: the file cannot be decoded as far as its first frames.
        """
        rng = self._rng.child(index)
        clip = self.clips[_below(rng.child("file"), len(self.clips))]
        video = self._frames(clip, rng)
        side = _crop_side(clip, self.size, float(rng.child("side").uniform(1)))
        top = _below(rng.child("top"), video.shape[2] - side + 1)
        left = _below(rng.child("left"), video.shape[3] - side + 1)
        video = resize(video[:, :, top : top + side, left : left + side], self.size, self.size)
        if self.mirror and float(rng.child("mirror").uniform(1)) < 0.5:
            video = video.flip(3)
        return video.contiguous(), clip

    def _frames(self, clip: ClipInfo, rng: Rng) -> Tensor:
        is_still = float(rng.child("still").uniform(1)) < self.still_share
        needed = 1 if is_still else self.num_frames
        fitting = [n for n in self.strides if (needed - 1) * n < clip.num_frames]
        stride = fitting[_below(rng.child("stride"), len(fitting))] if fitting else 1
        span = (needed - 1) * stride + 1
        start = _below(rng.child("start"), clip.num_frames - span + 1)
        video = self._decoded.frames(clip, start, start + span)
        video = video[::stride]
        if len(video) < self.num_frames:  # a still, or a file that is shorter than it says
            video = torch.cat([video, video[-1:].expand(self.num_frames - len(video), -1, -1, -1)])
        return video


class DecodedClips:
    """Decoded frames in bounded memory: short clips are kept whole, the least recently used is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()

    def frames(self, clip: ClipInfo, start: int, stop: int) -> Tensor:
        """Return frames start .. stop - 1, uint8 [t 3 h w]; where the file ends earlier, its last ones."""
        if clip.path in self._kept:
            self._kept.move_to_end(clip.path)
            return _part(self._kept[clip.path], start, stop)
        # A clip that would take more than a quarter of the memory is read anew each time.
        if 3 * clip.height * clip.width * clip.num_frames <= self.max_bytes // 4:
            whole = _read(clip, 0, None)
            self._keep(clip.path, whole)
            return _part(whole, start, stop)
        return _read(clip, start, stop)

    def _keep(self, path: Path, video: Tensor) -> None:
        self._kept[path] = video
        self.num_bytes += video.numel()
        while self.num_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= dropped.numel()


def resize(video: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [t 3 h w] with antialiasing."""
    if video.shape[-2:] == (height, width):
        return video
    resized = F.interpolate(video.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _read(clip: ClipInfo, start: int, stop: int | None) -> Tensor:
    reader = clip.reading.open(clip.path, allow_truncated=True)
    frames = [frame.pixels for frame in reader.frames(start, stop)]
    if not frames:  # fewer frames than claimed: take the last ones that are there
        frames = [frame.pixels for frame in reader.frames(0, stop)]
        frames = frames[-(stop - start) :] if stop is not None else frames
    if not frames:
        raise InputError(f"{clip.path}: no frame can be decoded; take it out of the footage.")
    return torch.stack(frames)


def _part(video: Tensor, start: int, stop: int) -> Tensor:
    start = max(0, min(start, len(video) - (stop - start)))
    return video[start:stop]


def _crop_side(clip: ClipInfo, size: int, chance: float) -> int:
    whole = min(clip.height, clip.width)
    return whole if whole <= size else size + int(chance * (whole - size + 1))


def _below(rng: Rng, bound: int) -> int:
    return int(rng.integers(0, max(1, bound), 1))
