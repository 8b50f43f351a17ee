"""Latent files: what a clip became, frame by frame, and all that is needed to turn it back into that clip.

A safetensors file with these tensors, in this order:

    latents  [t c h w]  F32 or F16, in model space
    logvar   [t c h w]  the same, where the encoder has a variance
    times    [n]        I64, when each frame is shown, in ticks of the metadata's `time_base`

There is a time for every frame of the clip, n of them. Where latents are frames, t is n. Where a latent is several
frames (`temporal_factor` f), the first latent is one frame and every further one is f, so that t latents are
1 + (t - 1) * f frames, and `frame_padding` says how many of those at the end were added and are cut on decoding.

Frames come first, unlike in memory ([c t h w]), so that a file can be written and read as a stream: neither holds
more than a chunk. The header is a fixed 64 KiB, padded with blanks, and is written last. It is sealed: `header_sha256`
is the hash of all its bytes, with zeros for the hash's own digits (`seal`), so that no bit of it changes unnoticed.
`data_sha256` is that of all bytes behind it. Files of version 1, which have no seal, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentvid.autoencoders.base import BaseAutoencoder, Factor, numbers
from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import atomic_path
from latentvid.core.headers import SEAL, check_seal, header_bytes, parse_header, seal
from latentvid.core.reading import open_regular, parse_json, read_at
from latentvid.core.text import utf8
from latentvid.core.time import TimeGrid

FORMAT, VERSION, UNSEALED = "latentvid-latents", 2, 1
HEADER_BYTES = 1 << 16
_SLOWEST, _FASTEST, _LARGEST_TERM = Fraction(1, 10**6), Fraction(10**6), (1 << 31) - 1
_LONGEST_S = 10**9
"""A clip's frames lie within this, thirty years, of each other and of 0."""
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
        """Return the metadata of a file without a seal; safetensors holds words only."""
        words = {name: _word(value) for name, value in self._items()}
        return {"format": FORMAT, "format_version": str(UNSEALED), **words, "padding": json.dumps(self.padding)}

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
            except (ArithmeticError, ValueError, TypeError, KeyError):
                raise ValueError(f"{field.name} is {words[field.name][:40]!r}") from None
        meta = cls(**values)
        sizes = (meta.spatial_factor, meta.temporal_factor, meta.height, meta.width)
        rates = (meta.fps, meta.time_base, meta.sample_aspect_ratio)
        scales, shifts = numbers(meta.scaling_factor), numbers(meta.shift_factor)
        if min(sizes) <= 0 or min(rates) <= 0 or not (scales and shifts and all(abs(n) > 0 for n in scales)):
            raise ValueError("sizes, rates and factors must be positive")
        if not all(map(math.isfinite, (*scales, *shifts))) or min(meta.source_bytes, meta.max_frames) < 0:
            raise ValueError("factors and counts must be numbers")
        terms = (*meta.time_base.as_integer_ratio(), *meta.sample_aspect_ratio.as_integer_ratio())
        if min(meta.fps, meta.sample_aspect_ratio) < _SLOWEST or max(rates) > _FASTEST or max(terms) > _LARGEST_TERM:
            raise ValueError(f"no film has the rates {meta.fps} and {meta.time_base}")
        if max(meta.fps.as_integer_ratio()) > _LARGEST_TERM:  # a mean over a clip's times; video files cannot hold it
            meta = replace(meta, fps=meta.fps.limit_denominator(_LARGEST_TERM // (1 + int(meta.fps))))
        return meta


def _factor(word: str) -> Factor:
    value = parse_json(word)
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _whole(word: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", word):
        raise ValueError(word)
    return int(word)


def _fraction(word: str) -> Fraction:
    # By its form first: Fraction would spell out "1e999999999".
    if not re.fullmatch(r"-?[0-9]{1,18}(/[0-9]{1,18}|\.[0-9]{1,18})?", word):
        raise ValueError(word)
    return Fraction(word)


_READERS: dict[str, Any] = {
    "str": str,
    "Factor": _factor,
    "int": _whole,
    "Fraction": _fraction,
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
        self._file.write(seal((HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(HEADER_BYTES - 8)))
        self._file.flush()

    def _header(self) -> dict[str, Any]:
        more = {"format_version": str(VERSION), "frame_padding": str(self._frame_padding)}
        more |= {"data_sha256": self._digest.hexdigest(), SEAL: "0" * 64}
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
            if not torch.isfinite(values).all():
                raise CheckpointError(
                    f"{self.path}: the latents are no numbers: the denoiser (the U-Net), or the encoder of frames, "
                    "overflows or has damaged weights; try --dtype fp32."
                )
            raise CheckpointError(f"{self.path}: the autoencoder gave latents that {self._dtype} cannot hold.")
        return stored.numpy().tobytes()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


class LatentFile:
    """A latent file, open for reading in chunks until it is closed or forgotten.

    It reads what lay there when it was opened: another file that takes the place does not matter, and one that is
    changed in place is refused.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or no latent file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._handle = open_regular(self.path)
            self._close = weakref.finalize(self, os.close, self._handle)
            self._stamp = self._now()
            data = header_bytes(self._handle, self.path)
        except InputError as error:
            raise CheckpointError(str(error)) from error
        header = parse_header(data, self._stamp[0], self.path)
        if header.metadata.get("format") != FORMAT or "latents" not in header.tensors:
            raise CheckpointError(f"{self.path} is a safetensors file, but none of latents.")
        version = header.metadata.get("format_version")
        if version not in (str(UNSEALED), str(VERSION)):
            raise CheckpointError(
                f"{self.path} has the format version {version!r}; this program reads {UNSEALED} to {VERSION}."
            )
        self.precision = header.tensors["latents"][0]
        self._starts, self._dims = header.starts, {name: shape for name, (_, shape) in header.tensors.items()}
        try:
            self.meta = LatentMeta.from_words(header.metadata)
            self._check(header.tensors)
            if version == str(VERSION) or SEAL in header.metadata:
                check_seal(data, header, self.path)
            self._ticks = self._read_ticks()
        except ValueError as error:
            raise CheckpointError(f"{self.path}: its header makes no sense ({error}).") from error
        self._sha256 = header.metadata.get("data_sha256", "")
        self.num_latents, self.channels, self.height, self.width = header.tensors["latents"][1]
        (self.num_frames,) = header.tensors["times"][1]
        self.has_logvar = "logvar" in header.tensors

    def close(self) -> None:
        """Let go of the file."""
        self._close()

    def _now(self) -> tuple[int, int]:
        """Return the file's size and when it was last written, which tell whether it was changed in place."""
        about = os.fstat(self._handle)
        return about.st_size, about.st_mtime_ns

    def _read_ticks(self) -> list[int]:
        """Return the frame times, which must increase and stay within what films last.

        Raises:
            ValueError: they do not.
        """
        (num_frames,), longest = self._dims["times"], int(_LONGEST_S / self.meta.time_base)
        ticks: list[int] = []
        for start in range(0, num_frames, 1 << 16):
            part = self._slice("times", start, min(start + (1 << 16), num_frames)).tolist()
            if any(later <= earlier for earlier, later in pairwise([*ticks[-1:], *part])):
                raise ValueError("its frame times do not increase")
            if not -longest <= part[0] <= part[-1] <= longest:
                raise ValueError("its frame times are beyond any film")
            ticks += part
        return ticks

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
        place, end = min(self._starts.values()), self._stamp[0]
        while place < end:
            block = self._bytes(place, min(1 << 20, end - place))
            digest.update(block)
            place += len(block)
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
        if "logvar" in tensors and tensors["logvar"] != tensors["latents"]:
            raise ValueError("logvar has another shape or type than latents")
        if tensors.keys() - {"latents", "logvar", "times"}:
            raise ValueError("there is more in it than latents")
        for factor_of in (self.meta.scaling_factor, self.meta.shift_factor):
            if len(numbers(factor_of)) not in (1, shape[1]):
                raise ValueError(f"{len(numbers(factor_of))} factors for {shape[1]} channels")

    def _slice(self, name: str, start: int, stop: int) -> Tensor:
        """Return entries start .. stop - 1 of a tensor along its first axis."""
        shape = self._dims[name]
        dtype = np.dtype("<i8") if name == "times" else np.dtype({"F32": "<f4", "F16": "<f2"}[self.precision])
        row = dtype.itemsize * math.prod(shape[1:])
        data = self._bytes(self._starts[name] + start * row, max(0, stop - start) * row)
        native = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))  # a copy: memory that may be written
        return torch.from_numpy(native.reshape(-1, *shape[1:]))

    def _bytes(self, start: int, num_bytes: int) -> bytes:
        # Not mapped into memory: a mapping counts as memory of ours, and one of a file that is cut off meanwhile kills.
        parts, place = [], start
        try:
            while place < start + num_bytes and (part := read_at(self._handle, start + num_bytes - place, place)):
                parts.append(part)
                place += len(part)
            is_same = self._now() == self._stamp
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if place != start + num_bytes or not is_same:
            raise CheckpointError(f"{self.path} was changed while it was read; repeat.")
        return b"".join(parts)


def _most_padding(temporal_factor: int) -> int:
    """Return the frames that no film is padded by; some autoencoders take latents after the first in pairs."""
    return 1 if temporal_factor == 1 else 2 * temporal_factor


def _geometry(channels: int, spatial: int, temporal: int) -> str:
    times = "" if temporal == 1 else f" and 1/{temporal} of the frames"
    return f"{channels} channels at 1/{spatial} of the size{times}"


def _word(value: Any) -> str:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return json.dumps(value) if isinstance(value, tuple) else str(value)
