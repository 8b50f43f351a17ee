"""Latents in tar files, as webdataset lays them out: written whole or not at all, read with the standard library.

A sample is the members of one key: `KEY.latents.npy` [t c h w] float16 or float32, `KEY.json` (what it is of), and
`KEY.txt` where it has a caption. Nothing in them is code: no pickles, headers are checked before memory is taken. Equal
samples give equal bytes.
"""

from __future__ import annotations

import filecmp
import io
import json
import math
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import atomic_path
from latentvid.data.text_files import decode_text, warn_of_odd_bytes

LATENTS, ABOUT, CAPTION = "latents.npy", "json", "txt"
_MOST_WORDS = 1 << 20
"""Bytes of a caption or a record; more is none of ours."""


class ShardWriter:
    """Writes samples into `PREFIX-00000.tar`, `PREFIX-00001.tar` and so on. Use as a context manager.

    A shard that exists with the same bytes is left as it is, so that a killed run can simply be repeated.

    Args:
        folder: made where missing.
        prefix: of the files' names.
        max_bytes: a shard is closed before it would grow beyond this; one sample always fits.
        overwrite: replace shards that hold something else.

    Raises:
        UsageError: such a shard exists (without `overwrite`).
    """

    def __init__(
        self, folder: str | Path, *, prefix: str = "latents", max_bytes: int = 1 << 30, overwrite: bool = False
    ) -> None:
        self.folder, self.prefix, self.max_bytes, self.overwrite = Path(folder), prefix, max_bytes, overwrite
        self.paths: list[Path] = []
        self.num_samples = 0
        self._open = ExitStack()
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind, error, trace)

    def add(self, key: str, latents: Tensor, about: dict[str, Any], caption: str = "") -> None:
        """Append a sample.

        Args:
            key: without dots and separators, since webdataset takes what follows a dot for the member's kind.
            latents: [c t h w], float16 or float32.
            about: JSON-able.
            caption: "" for none.
        """
        if not key or set(key) & set("./\\"):
            raise ValueError(f"{key!r} is no key of a sample")
        array = io.BytesIO()
        np.lib.format.write_array(array, latents.transpose(0, 1).contiguous().cpu().numpy(), allow_pickle=False)
        parts = {LATENTS: array.getvalue(), ABOUT: json.dumps(about, sort_keys=True).encode()}
        if caption:
            parts[CAPTION] = caption.encode()
        # Every member has a block of header and is padded to whole blocks.
        size = sum(tarfile.BLOCKSIZE * (1 + math.ceil(len(data) / tarfile.BLOCKSIZE)) for data in parts.values())
        if self._tar is not None and self._tar.offset + size > self.max_bytes:
            self._close()
        tar = self._tar or self._next()
        for kind, data in parts.items():
            member = tarfile.TarInfo(f"{key}.{kind}")  # times, owners and modes stay what they are by default
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self.num_samples += 1

    def _next(self) -> tarfile.TarFile:
        path = self.folder / f"{self.prefix}-{len(self.paths):05d}.tar"
        beside = self._open.enter_context(_unless_same(path, overwrite=self.overwrite))
        tar = tarfile.TarFile(beside, "w", format=tarfile.USTAR_FORMAT)
        self._tar = self._open.enter_context(tar)
        self.paths.append(path)
        return tar

    def _close(self, *error: Any) -> None:
        self._tar = None
        self._open.__exit__(*(error or (None, None, None)))


class _SameError(Exception):
    """What was written is there already."""


@contextmanager
def _unless_same(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """`atomic_path`, except that a target of the same bytes is not touched, and one of others only with leave."""
    try:
        with atomic_path(target) as beside:
            yield beside
            if target.exists() and filecmp.cmp(beside, target, shallow=False):
                raise _SameError
            if target.exists() and not overwrite:
                raise UsageError(f"{target} exists and holds other latents; pass --overwrite to replace it.")
    except _SameError:
        pass


@dataclass(frozen=True, slots=True)
class _Member:
    shard: Path
    start: int
    size: int


class LatentShards:
    """Samples of latents by number, read from tar files when asked for.

    Opening reads the tar headers only. `latents` and `captions` are those of the training cache, which it can stand for
    where no pixels are needed.

    Args:
        places: shards, or folders of them.

    Raises:
        CheckpointError: there are none, or one is damaged or no shard of latents.
    """

    def __init__(self, *places: str | Path) -> None:
        self.shards = [shard for place in places for shard in _shards(Path(place))]
        self._samples: list[dict[str, _Member]] = []
        self.keys: list[str] = []
        for shard in self.shards:
            for key, members in _index(shard):
                self.keys.append(key)
                self._samples.append(members)
        odd: dict[Path, int] = {}
        self.captions: list[list[str]] = [self._caption(members, odd) for members in self._samples]
        warn_of_odd_bytes(odd)

    def __len__(self) -> int:
        return len(self.keys)

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w].

        Raises:
            CheckpointError: the sample is damaged.
        """
        member = self._samples[index][LATENTS]
        try:
            return _array(_read(member)).transpose(0, 1)
        except ValueError as error:
            raise CheckpointError(
                f"{member.shard}: the latents of {self.keys[index]} are damaged ({error})."
            ) from error

    def about(self, index: int) -> dict[str, Any]:
        """Return the record of a sample."""
        member = self._samples[index][ABOUT]
        try:
            return dict(json.loads(_read(member)))
        except ValueError as error:
            raise CheckpointError(f"{member.shard}: the record of {self.keys[index]} is damaged ({error}).") from error

    @staticmethod
    def _caption(members: dict[str, _Member], odd: dict[Path, int]) -> list[str]:
        if CAPTION not in members:
            return []
        text, num_odd = decode_text(_read(members[CAPTION]))
        if num_odd:
            shard = members[CAPTION].shard
            odd[shard] = odd.get(shard, 0) + num_odd
        return [text] if text else []


def _shards(place: Path) -> list[Path]:
    found = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    if not found:
        raise CheckpointError(f"{place} holds no shards of latents.")
    return found


def _index(shard: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield the samples of a shard: members of one key follow each other."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, kind = member.name.rpartition("/")[2].partition(".")
                if not member.isreg() or member.offset_data + member.size > size:
                    raise CheckpointError(f"{shard}: {member.name[:80]!r} is cut short, or no file.")
                if kind != LATENTS and member.size > _MOST_WORDS:
                    raise CheckpointError(f"{shard}: {member.name[:80]!r} is too large.")
                samples.setdefault(key, {})[kind] = _Member(shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise CheckpointError(f"{shard}: damaged, or no tar file ({error}).") from error
    for key, members in samples.items():
        if LATENTS not in members or ABOUT not in members:
            raise CheckpointError(f"{shard}: the sample {key[:80]!r} lacks its latents or its record.")
        yield key, members


def _read(member: _Member) -> bytes:
    try:
        with member.shard.open("rb") as stream:
            stream.seek(member.start)
            data = stream.read(member.size)
    except OSError as error:
        raise CheckpointError(f"{member.shard}: cannot be read ({error.strerror}).") from error
    if len(data) != member.size:
        raise CheckpointError(f"{member.shard}: has become shorter since it was opened.")
    return data


def _array(data: bytes) -> Tensor:
    """Read an .npy of latents [t c h w] as float32.

    Raises:
        ValueError: it is none: another type or shape, or a header that does not go with the size.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("of another version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 4 or min(shape) < 1 or is_fortran or dtype.str not in ("<f2", "<f4"):
        raise ValueError(f"{dtype.str} {list(shape)}")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {list(shape)}")
    values = torch.from_numpy(np.frombuffer(data, dtype, offset=stream.tell()).astype(np.float32)).view(shape)
    if not torch.isfinite(values).all():
        raise ValueError("values that are not finite")
    return values
