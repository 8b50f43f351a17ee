"""Latents that other programs wrote: a tensor in a file, about which the user says what the file does not.

Read are safetensors files (ComfyUI's `.latent`, musubi-tuner's caches, plain tensors), numpy's `.npy`, and torch's
`.pt`, of which nothing but tensors is loaded.
"""

from __future__ import annotations

import itertools
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentvid.autoencoders.base import BaseAutoencoder, numbers
from latentvid.autoencoders.latent_file import FORMAT
from latentvid.core.checkpoints import read_header
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.video.writer import VideoWriter

Scaling = Literal["raw", "model"]
CHUNK_LATENTS = 16
_NAMES = re.compile(r"(?:.*[./])?(?:latents?|latent_tensor|samples|latents?_\d[\dx]*(?:_\w+)?)")
"""What programs call the latents in a file; musubi-tuner adds their size and type."""
_COMFY = "latent_format_version_0"
_ALIASES = {"f": "t", "n": "b", "1": "b"}
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"


@dataclass(frozen=True)
class ForeignLatents:
    """Latents of one film, as the file has them, seen as [c t h w]."""

    path: Path
    name: str
    """Of the tensor in the file; "" where it has none."""
    values: Tensor
    scaling: Scaling
    """Whether they are what the encoder gave, or scaled and shifted as the diffusion model has them."""

    @property
    def num_latents(self) -> int:
        return self.values.shape[1]

    def chunks(self, autoencoder: BaseAutoencoder) -> Iterator[Tensor]:
        """Yield the latents in the model space of `autoencoder`, float32 [c t h w], some at a time.

        Raises:
            CheckpointError: a value is not finite.
        """
        scaling, shift = (
            torch.tensor(numbers(factor)).view(-1, 1, 1, 1)
            for factor in (autoencoder.scaling_factor, autoencoder.shift_factor)
        )
        for start in range(0, self.num_latents, CHUNK_LATENTS):
            chunk = self.values[:, start : start + CHUNK_LATENTS].float()
            if not chunk.isfinite().all():
                raise CheckpointError(f"{self.path}: latents from number {start} on hold values that are not finite.")
            yield (chunk - shift) * scaling if self.scaling == "raw" else chunk


def is_foreign(path: Path) -> bool:
    """Tell whether a file is of a kind that `read_foreign` reads, and no latent file of ours."""
    start = _start(path)
    if start.startswith((_NPY, _ZIP, b"\x80")):
        return True
    try:
        header = read_header(path)
    except CheckpointError:
        return False
    return header.metadata.get("format") != FORMAT


def read_foreign(
    path: str | Path, layout: str, *, scaling: Scaling | None = None, tensor: str | None = None, item: int | None = None
) -> ForeignLatents:
    """Read latents of another program.

    Args:
        layout: the tensor's axes in order: c, t (or f), h, w and b (or n, 1), such as "b c t h w"; without t it is one
            latent.
        scaling: "model" where the latents are scaled and shifted as the diffusion model has them, "raw" where they are
            as the encoder gave them; by default "raw" for files of ComfyUI and else "model".
        tensor: its name in the file, where there are several.
        item: which of the batch, from 0; needed where it holds several.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no tensor of numbers.
        UsageError: the layout is none or not the tensor's, or one of several tensors or items must be named.
    """
    path = Path(path)
    axes = parse_layout(layout)
    found = _tensors(path)
    if scaling is None:
        scaling = "raw" if _COMFY in found else "model"
    name, values = _chosen(path, {name: value for name, value in found.items() if _is_latents(value)}, tensor)
    if values.numel() > path.stat().st_size:  # a view of few numbers can claim any size
        raise CheckpointError(f"{path}: {_called(name)} claims more numbers than the file holds.")
    if values.ndim != len(axes):
        raise UsageError(
            f"{path}: {_called(name)} has {values.ndim} axes {list(values.shape)}, and --layout {layout!r} names"
            f" {len(axes)}."
        )
    if "b" in axes:
        values = values.select(axes.index("b"), _item(path, values.shape[axes.index("b")], item))
        axes.remove("b")
    elif item is not None:
        raise UsageError(f"--item needs a layout with the axis b, and {layout!r} has none.")
    if "t" not in axes:
        values, axes = values[None], ["t", *axes]
    return ForeignLatents(path, name, values.permute([axes.index(axis) for axis in "cthw"]), scaling)


def parse_layout(layout: str) -> list[str]:
    """Return the axes of a layout.

    >>> parse_layout("b t c h w"), parse_layout("1CFHW")
    (['b', 't', 'c', 'h', 'w'], ['b', 'c', 't', 'h', 'w'])

    Raises:
        UsageError: it names others, one twice, or not c, h and w.
    """
    axes = [_ALIASES.get(letter, letter) for letter in re.sub(r"[\s,]+", "", layout.lower())]
    if not set("chw") <= set(axes) <= set("bcthw") or len(set(axes)) != len(axes):
        raise UsageError(
            f"--layout {layout!r} is not understood; name each axis once: c, h, w, t where there are frames and b where"
            ' there is a batch, such as "b c t h w".'
        )
    return axes


def decode_foreign(
    autoencoder: BaseAutoencoder,
    latents: ForeignLatents,
    target: str | Path,
    *,
    fps: Fraction,
    overwrite: bool = False,
    on_frames: Any = None,
    **writing: Any,
) -> dict[str, Any]:
    """Decode latents of another program into a video; return what was done, JSON-able.

    Args:
        fps: frames per second of the video.
        writing: options of `VideoWriter` (codec, crf, preset).

    Raises:
        CheckpointError: the autoencoder has other channels, or a value is not finite.
        UsageError: the target exists (without `overwrite`), or cannot hold such a video.
    """
    check_channels(autoencoder, latents)
    height, width = (side * autoencoder.spatial_factor for side in latents.values.shape[-2:])
    done = 0
    with VideoWriter(target, fps=fps, width=width, height=height, overwrite=overwrite, **writing) as writer:
        for video in autoencoder.decode(latents.chunks(autoencoder), size=(height, width)):
            writer.write(video)
            done += len(video)
            if on_frames:
                on_frames(len(video))
    return {
        "tiles": autoencoder.tiles_per_frame(height, width),
        "source": str(latents.path),
        "tensor": latents.name,
        "output": str(target),
        "num_frames": done,
        "duration_s": float(done / fps),
        "has_audio": False,
    }


def check_channels(autoencoder: BaseAutoencoder, latents: ForeignLatents) -> None:
    """Refuse latents whose channels are not the autoencoder's.

    Raises:
        CheckpointError: as above.
    """
    channels, frames, height, width = latents.values.shape
    if channels != autoencoder.latent_channels:
        raise CheckpointError(
            f"{latents.path}: with this layout it holds {frames} latents of {width}x{height} with {channels} channels,"
            f" and {autoencoder.name or 'the autoencoder'} takes {autoencoder.latent_channels}; is the layout right?"
        )


def _start(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name."""
    start = _start(path)
    if start.startswith(_NPY):
        return {"": _read_npy(path)}
    if start.startswith((_ZIP, b"\x80")):
        return dict(_named(_read_pt(path)))
    return _read_safetensors(path)


def _is_latents(value: Tensor) -> bool:
    is_dense = value.layout is torch.strided and value.device.type != "meta"
    return is_dense and value.is_floating_point() and 3 <= value.ndim <= 5 and min(value.shape) > 0


def _read_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(np.asarray(array, dtype=array.dtype.newbyteorder("=")))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or no array of numbers ({_first_line(error)}).") from error


def _read_pt(path: Path) -> Any:
    try:
        entries = zipfile.ZipFile(path).infolist() if _start(path).startswith(_ZIP) else []
        if any(entry.filename.endswith(".npy") for entry in entries):
            raise ValueError("an archive of arrays; save the latents alone, as .npy or .safetensors")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("compressed, which torch's files are not")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which is not loaded since it could run code; save the latents as"
            " .safetensors."
        ) from error
    except Exception as error:  # torch, zipfile and pickle each have their own
        raise CheckpointError(f"{path}: damaged, or no file of tensors ({_first_line(error)}).") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    header = read_header(path)
    if header.metadata.get("format") == FORMAT:
        raise UsageError(f"{path} is a latent file of ours, which knows its layout; decode it without --layout.")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in header.tensors}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error


def _named(value: Any, name: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts and lists, with their names; each list once, as they can hold each other."""
    if isinstance(value, Tensor):
        yield name, value
    if isinstance(value, dict | list | tuple) and id(value) not in seen and len(seen) < 8:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _named(inner, f"{name}.{key}" if name else str(key), seen | {id(value)})


def _chosen(path: Path, tensors: Mapping[str, Tensor], name: str | None) -> tuple[str, Tensor]:
    """Return the tensor that is meant, of those that could be latents."""
    if not tensors:
        raise CheckpointError(f"{path} holds no tensor of three to five axes that could be latents.")
    usual = [found for found in tensors if _NAMES.fullmatch(found)]
    choice = usual if len(usual) == 1 else list(tensors)
    if name is None and len(choice) == 1:
        return choice[0], tensors[choice[0]]
    if name is None or name not in tensors:
        shown = [f"{found} {list(tensors[found].shape)}" for found in itertools.islice(usual or tensors, 8)]
        more = ", ..." if len(tensors) > len(shown) else ""
        asked = "has several" if name is None else f"has no tensor {name!r}"
        raise UsageError(f"{path} {asked}; pass --tensor with one of: {', '.join(shown)}{more}.")
    return name, tensors[name]


def _item(path: Path, count: int, item: int | None) -> int:
    if item is None and count > 1:
        raise UsageError(f"{path} holds a batch of {count}; pass --item with one of 0 to {count - 1}.")
    if item is not None and not 0 <= item < count:
        raise UsageError(f"--item {item} is none of the batch in {path}, which goes from 0 to {count - 1}.")
    return item or 0


def _called(name: str) -> str:
    return f"the tensor {name!r}" if name else "the tensor"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
