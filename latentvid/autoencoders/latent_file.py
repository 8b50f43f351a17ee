"""Latent files: what a clip became, frame by frame, and all that is needed to turn it back into that clip.

A safetensors file with these tensors, in this order:

    latents  [t c h w]  F32 or F16, in model space
    logvar   [t c h w]  the same, where the encoder has a variance
    times    [n]        I64, when each frame is shown, in ticks of the metadata's `time_base`

There is a time for every frame of the clip, n of them. Where latents are frames, t is n. Where a latent is several
frames (`temporal_factor` f), the first latent is one frame and every further one is f, so that t latents are
1 + (t - 1) * f frames, and `frame_padding` says how many of those at the end were added and are cut on decoding.

Frames come first, unlike in memory ([c t h w]), so that a file can be written and read as a stream: neither holds
more than a chunk. The header is a fixed 64 KiB, padded with blanks, and is written last.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentvid.autoencoders.base import BaseAutoencoder, Factor, numbers
from latentvid.core.checkpoints import read_header
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import atomic_path
from latentvid.core.time import TimeGrid

FORMAT, VERSION = "latentvid-latents", 1
HEADER_BYTES = 1 << 16
Precision = Literal["fp32", "fp16"]
_STORED = {"fp32": ("F32", torch.float32), "fp16": ("F16", torch.float16)}


@dataclass(frozen=True, slots=True)
class LatentMeta:
    """What a latent file says of its latents and of the clip that they were."""

    vae: str
    """Name of the autoencoder's folder."""
    latent_space: str
    """Hash of what gives the latents their meaning; see `BaseAutoencoder.latent_space`."""
    scaling_factor: Factor
    shift_factor: Factor
    """Numbers, or lists with one for each channel."""
    spatial_factor: int
    """Pixels per side of one latent."""
    height: int
    width: int
    """Pixels of the clip, before padding at the right and bottom to multiples of `spatial_factor`."""
    fps: Fraction
    time_base: Fraction
    """Seconds per tick of the frame times."""
    color_range: str = "limited"
    color_matrix: str = "bt709"
    source_name: str = ""
    source_sha256: str = ""
    """The clip's file; empty for latents that were generated."""
    source_bytes: int = 0
    source_path: str = ""
    """Where the clip lay, seen from the folder of the latent file."""
    source_notes: str = ""
    """What the reader did to the clip's pictures: tone mapping, bits dropped, frames missing."""
    sample_aspect_ratio: Fraction = Fraction(1)
    """Width of a pixel over its height; never applied, written into what is decoded."""
    max_frames: int = 0
    """How many frames were asked for, from the first on; 0 for all."""
    temporal_factor: int = 1
    """Frames of every latent after the first, which is one frame."""
    is_truncated: bool = False
    """The clip broke off, and what could be read of it was encoded all the same."""

    @property
    def grid(self) -> TimeGrid:
        """Which frames a latent stands for."""
        return TimeGrid(1, self.temporal_factor)

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels that were added at the bottom and at the right."""
        return -self.height % self.spatial_factor, -self.width % self.spatial_factor

    def to_words(self) -> dict[str, str]:
        """Return the metadata of the file; safetensors holds words only."""
        words = {name: _word(value) for name, value in self._items()}
        return {"format": FORMAT, "format_version": str(VERSION), **words, "padding": json.dumps(self.padding)}

    def _items(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    @classmethod
    def from_words(cls, words: dict[str, str]) -> LatentMeta:
        """Read metadata.

        Raises:
            ValueError: something is missing or is not what it should be; the text names it.
        """
        values = {}
        for field in fields(cls):
            if field.name not in words:
                if field.default is not MISSING:  # files of older versions say less
                    continue
                raise ValueError(f"{field.name} is missing")
            try:
                values[field.name] = _READERS[str(field.type)](words[field.name])
            except (ValueError, TypeError, KeyError, ZeroDivisionError):
                raise ValueError(f"{field.name} is {words[field.name][:40]!r}") from None
        meta = cls(**values)
        sizes = (meta.spatial_factor, meta.temporal_factor, meta.height, meta.width)
        rates = (meta.fps, meta.time_base, meta.sample_aspect_ratio)
        if min(sizes) <= 0 or min(rates) <= 0 or not all(abs(n) > 0 for n in numbers(meta.scaling_factor)):
            raise ValueError("sizes, rates and factors must be positive")
        return meta


def _factor(word: str) -> Factor:
    value = json.loads(word)
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


_READERS: dict[str, Any] = {
    "str": str,
    "Factor": _factor,
    "int": int,
    "Fraction": Fraction,
    "bool": {"True": True, "False": False}.__getitem__,
}


def describe(
    autoencoder: BaseAutoencoder, *, height: int, width: int, fps: Fraction, time_base: Fraction, **source: Any
) -> LatentMeta:
    """Return the metadata of latents that `autoencoder` made, or that were generated for it."""
    return LatentMeta(
        vae=autoencoder.name,
        latent_space=autoencoder.latent_space(),
        scaling_factor=autoencoder.scaling_factor,
        shift_factor=autoencoder.shift_factor,
        spatial_factor=autoencoder.spatial_factor,
        temporal_factor=autoencoder.grid.step,
        height=height,
        width=width,
        fps=fps,
        time_base=time_base,
        **source,
    )


class LatentWriter:
    """Writes a latent file chunk by chunk. Use as a context manager; after a failure nothing is left.

    Args:
        path: ends in `.safetensors`.
        meta: goes into the header.
        precision: of the stored latents.
        overwrite: replace a file that exists.

    Raises:
        UsageError: the file exists, or has another suffix, or no frame was written.
    """

    def __init__(
        self, path: str | Path, meta: LatentMeta, *, precision: Precision = "fp32", overwrite: bool = False
    ) -> None:
        self.path, self.meta = Path(path), meta
        if self.path.suffix != ".safetensors":
            raise UsageError(f"{path}: name a latent file .safetensors.")
        self._code, self._dtype = _STORED[precision]
        self._target = atomic_path(self.path, overwrite=overwrite)
        self._stack = ExitStack()
        self._digest = hashlib.sha256()
        self._times: list[int] = []
        self._num_latents = 0
        self._dims: tuple[int, ...] = ()
        self._has_logvar: bool | None = None

    def __enter__(self) -> LatentWriter:
        with ExitStack() as stack:
            beside = stack.enter_context(self._target)
            self._file: IO[bytes] = stack.enter_context(beside.open("w+b"))
            # The variances follow all latents in the file, so they wait beside it.
            self._logvars: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=beside.parent))
            self._file.write(b" " * HEADER_BYTES)
            self._stack = stack.pop_all()
        return self

    def write(self, latents: Tensor, times_s: Sequence[Fraction], logvar: Tensor | None = None) -> None:
        """Append latents.

        Args:
            latents: [c t h w] in model space.
            times_s: when each frame is shown, seconds; stored as the nearest ticks. Where a latent is several frames,
                those of the frames that went into the encoder since the last call.
            logvar: [c t h w]; with every chunk or with none.
        """
        channels, frames, height, width = latents.shape
        dims = (channels, height, width)
        is_even = len(times_s) == frames or self.meta.temporal_factor > 1
        if not is_even or self._dims not in ((), dims) or self._has_logvar not in (None, logvar is not None):
            raise ValueError(f"{self.path}: this chunk does not go with the ones before it, or with its times")
        self._dims, self._has_logvar = dims, logvar is not None
        self._put(self._bytes(latents))
        if logvar is not None:
            self._logvars.write(self._bytes(logvar))
        self._num_latents += frames
        self._times += [round(time / self.meta.time_base) for time in times_s]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What goes wrong at the end goes through the stack as well: atomic_path must hear of it to leave nothing.
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        if not self._times:
            raise UsageError(f"{self.path}: there are no frames to write.")
        if not 0 <= self._frame_padding < _most_padding(self.meta.temporal_factor):
            raise ValueError(f"{self.path}: {self._num_latents} latents for {len(self._times)} frames")
        if self._has_logvar:
            self._logvars.seek(0)
            for block in iter(lambda: self._logvars.read(1 << 20), b""):
                self._put(block)
        self._put(torch.tensor(self._times, dtype=torch.int64).numpy().astype("<i8").tobytes())
        header = json.dumps(self._header()).encode()
        if len(header) > HEADER_BYTES - 8:
            raise UsageError(f"{self.path}: the names in the header are too long.")
        self._file.seek(0)
        self._file.write((HEADER_BYTES - 8).to_bytes(8, "little") + header)
        self._file.flush()

    def _header(self) -> dict[str, Any]:
        more = {"frame_padding": str(self._frame_padding), "data_sha256": self._digest.hexdigest()}
        table: dict[str, Any] = {"__metadata__": {**self.meta.to_words(), **more}}
        frames, start = len(self._times), 0
        shape = [self._num_latents, *self._dims]
        size = (
            self._num_latents
            * self._dims[0]
            * self._dims[1]
            * self._dims[2]
            * torch.empty(0, dtype=self._dtype).element_size()
        )
        entries = [("latents", self._code, shape, size)]
        if self._has_logvar:
            entries.append(("logvar", self._code, shape, size))
        for name, code, dims, num_bytes in [*entries, ("times", "I64", [frames], 8 * frames)]:
            table[name] = {"dtype": code, "shape": dims, "data_offsets": [start, start + num_bytes]}
            start += num_bytes
        return table

    @property
    def _frame_padding(self) -> int:
        return self.meta.grid.frames(self._num_latents) - len(self._times)

    def _bytes(self, values: Tensor) -> bytes:
        stored = values.detach().to("cpu", self._dtype).transpose(0, 1).contiguous()
        if not torch.isfinite(stored).all():
            raise CheckpointError(f"{self.path}: the autoencoder gave latents that {self._dtype} cannot hold.")
        return stored.numpy().tobytes()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


class LatentFile:
    """A latent file, open for reading in chunks. Holds no open file between calls.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or no latent file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        if header.metadata.get("format") != FORMAT or "latents" not in header.tensors:
            raise CheckpointError(f"{self.path} is a safetensors file, but none of latents.")
        if header.metadata.get("format_version") != str(VERSION):
            version = header.metadata.get("format_version")
            raise CheckpointError(f"{self.path} has the format version {version!r}; this program reads {VERSION}.")
        try:
            self.meta = LatentMeta.from_words(header.metadata)
            self._check(header.tensors)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: its header makes no sense ({error}).") from error
        self._sha256 = header.metadata.get("data_sha256", "")
        self.precision = header.tensors["latents"][0]
        self.num_latents, self.channels, self.height, self.width = header.tensors["latents"][1]
        (self.num_frames,) = header.tensors["times"][1]
        self.has_logvar = "logvar" in header.tensors
        ticks = self._slice("times", 0, self.num_frames).tolist()
        if any(later <= earlier for earlier, later in pairwise(ticks)):
            raise CheckpointError(f"{self.path}: its frame times do not increase.")
        self._ticks: list[int] = ticks

    @property
    def times_s(self) -> list[Fraction]:
        """When each frame is shown, seconds."""
        return [tick * self.meta.time_base for tick in self._ticks]

    @property
    def is_regular(self) -> bool:
        """Whether frame k is shown at k / fps, so that the times need not be told."""
        return all(tick * self.meta.time_base == k / self.meta.fps for k, tick in enumerate(self._ticks))

    def read(self, start: int = 0, stop: int | None = None, *, logvar: bool = False) -> Tensor:
        """Return latents start .. stop - 1 as float32 [c t h w].

        Raises:
            CheckpointError: a value is not finite.
        """
        stop = self.num_latents if stop is None else min(stop, self.num_latents)
        values = self._slice("logvar" if logvar else "latents", start, stop).float()
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{self.path}: latents {start} to {stop - 1} hold values that are not finite.")
        return values.transpose(0, 1)

    def chunks(self, num_latents: int = 16) -> Iterator[Tensor]:
        """Yield all latents as float32 [c t h w], `num_latents` at a time."""
        for start in range(0, self.num_latents, num_latents):
            yield self.read(start, start + num_latents)

    def verify(self) -> None:
        """Read the whole file and compare it with the hash in its header.

        Raises:
            CheckpointError: they differ.
        """
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            stream.seek(8 + int.from_bytes(stream.read(8), "little"))
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != self._sha256:
            raise CheckpointError(
                f"{self.path} is damaged: its contents do not match their hash. Encode the clip again."
            )

    def check_fits(self, autoencoder: BaseAutoencoder, *, any_vae: bool = False) -> None:
        """Refuse an autoencoder that these latents were not made for.

        Args:
            any_vae: accept another one as long as the shapes fit.

        Raises:
            CheckpointError: it does not fit.
        """
        own = (self.channels, self.meta.spatial_factor, self.meta.temporal_factor)
        other = (autoencoder.latent_channels, autoencoder.spatial_factor, autoencoder.grid.step)
        if own != other:
            raise CheckpointError(
                f"{self.path} holds latents of {_geometry(*own)}; {autoencoder.name or 'this autoencoder'} takes "
                f"{_geometry(*other)}."
            )
        if not any_vae and autoencoder.latent_space() != self.meta.latent_space:
            raise CheckpointError(
                f"{self.path} was encoded with {self.meta.vae or 'another autoencoder'}, and "
                f"{autoencoder.name or 'this one'} has another latent space; pass --any-vae to decode it all the same."
            )

    def _check(self, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        dtype, shape = tensors["latents"]
        if len(shape) != 4 or min(shape) < 1 or dtype not in ("F32", "F16"):
            raise ValueError(f"latents are {dtype} {list(shape)}")
        factor, (down, right) = self.meta.spatial_factor, self.meta.padding
        if (shape[2] * factor, shape[3] * factor) != (self.meta.height + down, self.meta.width + right):
            raise ValueError(f"latents of {shape[3]}x{shape[2]} are not those of {self.meta.width}x{self.meta.height}")
        times, temporal = tensors.get("times"), self.meta.temporal_factor
        if times is None or times[0] != "I64" or len(times[1]) != 1:
            raise ValueError("there are no frame times")
        if not 0 <= self.meta.grid.frames(shape[0]) - times[1][0] < _most_padding(temporal):
            raise ValueError(f"there are {times[1][0]} frame times for {shape[0]} latents")
        if "logvar" in tensors and tensors["logvar"][1] != shape:
            raise ValueError("logvar has another shape than latents")

    def _slice(self, name: str, start: int, stop: int) -> Tensor:
        # Opened anew each time: a mapping that stays open counts as memory of ours, all of the file in the end.
        try:
            with safe_open(self.path, framework="pt") as opened:
                return opened.get_slice(name)[start:stop].clone()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}).") from error


def _most_padding(temporal_factor: int) -> int:
    """Return the frames that no film is padded by; some autoencoders take latents after the first in pairs."""
    return 1 if temporal_factor == 1 else 2 * temporal_factor


def _geometry(channels: int, spatial: int, temporal: int) -> str:
    times = "" if temporal == 1 else f" and 1/{temporal} of the frames"
    return f"{channels} channels at 1/{spatial} of the size{times}"


def _word(value: Any) -> str:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return json.dumps(value) if isinstance(value, tuple) else str(value)
