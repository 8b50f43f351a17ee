"""Weights of a component's folder: which files they are, in one piece or several, and as tensors.

Files are named as diffusers and transformers name them: `diffusion_pytorch_model.safetensors`, `model.fp16.safetensors`
for a variant, an index and numbered parts where they are large. Pickles are read only where a folder holds nothing
else, and nothing is made of them but tensors.
"""

from __future__ import annotations

import math
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentvid.core.errors import CheckpointError, InputError
from latentvid.core.headers import inside, read_header
from latentvid.core.reading import check_no_pointer, read_json, read_start

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_NAMES = "|".join(_STEMS)
_WHOLE = re.compile(rf"(?P<stem>{_NAMES})(?:\.(?P<variant>[\w-]+))?(?P<suffix>\.safetensors|\.bin|\.ckpt|\.pth?)")
_INDEX = re.compile(rf"(?P<stem>{_NAMES})(?P<suffix>\.safetensors|\.bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
_PART = re.compile(r".*-\d{5}-of-\d{5}.*")
_MOST_PARTS = 1000


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a component's weights lie."""

    variant: str
    """"" for those without."""
    files: tuple[Path, ...]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name to (dtype as the file writes it, shape); none are known of pickles before they are read."""
    is_pickled: bool

    @property
    def place(self) -> str:
        """What to call them."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    @property
    def dtypes(self) -> list[str]:
        return sorted({dtype for dtype, _ in self.tensors.values()})


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    stem: str
    variant: str
    is_index: bool
    is_pickled: bool


def find_weights(folder: Path, variant: str | None = None, *, any_variant: bool = False) -> Weights:
    """Return the weights of a component's folder.

    Args:
        variant: "fp16" and the like, where there is one; else the files without a variant. By default the files
            without, or the only variant that there is.
        any_variant: take the first of several variants.

    Raises:
        CheckpointError: there are none, or several to choose from; a file is damaged or leads out of the folder.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}).") from error
    every = [found for name in names if (found := _named(folder / name)) is not None]
    for is_pickled in (False, True):
        kind = [found for found in every if found.is_pickled == is_pickled]
        if not kind:
            suffixes = PICKLES if is_pickled else (".safetensors",)
            other = [folder / name for name in names if Path(name).suffix in suffixes and not _PART.fullmatch(name)]
            if len(other) > 1:
                raise CheckpointError(f"{folder} holds {len(other)} files of weights, and none has a usual name.")
            kind = [_Found(path, "", "", False, is_pickled) for path in other]
        if kind:
            return _weights(folder, _chosen(folder, kind, variant, any_variant=any_variant))
    raise CheckpointError(f"{folder} holds no weights.")


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """Load weights onto the CPU as they are stored.

    Raises:
        CheckpointError: a file is damaged, or a pickle of anything but tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if weights.is_pickled:
        return {name: tensor for path in weights.files for name, tensor in _unpickled(path).items()}
    found: dict[str, Tensor] = {}
    for path in weights.files:
        try:
            part = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error}).") from error
        found |= {name: tensor for name, tensor in part.items() if name in weights.tensors}
    return found


@contextmanager
def building(num_tensors: int) -> Iterator[None]:
    """Let no network be built in the block that has far more weights than there are to fill it.

    A config can ask for layers without end; they cost time and memory even without weights.

    Raises:
        CheckpointError: it is about to have more.
    """
    from torch.nn.modules import module

    # Some networks make layers that they replace; layers without weights come with those that have some.
    left = {"weights": 2 * num_tensors + 64, "layers": 16 * num_tensors + 512}
    thread = threading.get_ident()

    def count(kind: str) -> None:
        left[kind] -= 1
        if threading.get_ident() == thread and left[kind] < 0:
            raise CheckpointError(f"it asks for far more {kind} than the {num_tensors} weights of its file can fill.")

    handles = [
        module.register_module_parameter_registration_hook(lambda *_: count("weights")),
        module.register_module_module_registration_hook(lambda *_: count("layers")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(path: Path) -> _Found | None:
    """Return what a file of a usual name is; None for parts, which an index names, and for all others."""
    match = _INDEX.fullmatch(path.name)
    is_index = match is not None
    if match is None and not _PART.fullmatch(path.name):
        match = _WHOLE.fullmatch(path.name)
    if match is None:
        return None
    return _Found(path, match["stem"], match["variant"] or "", is_index, match["suffix"] in PICKLES)


def _chosen(folder: Path, found: Sequence[_Found], variant: str | None, *, any_variant: bool) -> _Found:
    variants = sorted({one.variant for one in found})
    wanted = variant if variant in variants else ""
    if wanted not in variants:
        if variant is not None or (len(variants) > 1 and not any_variant):
            raise CheckpointError(
                f"{folder} holds the variants {', '.join(variants)} of its weights"
                f"{', not ' + repr(variant) if variant is not None else '; name one with variant='}."
            )
        wanted = variants[0]
    # Whole files of old stand beside the parts that came later, as diffusers takes it.
    order = [one for one in found if one.variant == wanted]
    return min(order, key=lambda one: (not one.is_index, _STEMS.index(one.stem) if one.stem else 0))


def _weights(folder: Path, chosen: _Found) -> Weights:
    if not chosen.is_index:
        parts: Mapping[str, list[str]] = {chosen.path.name: []}
    else:
        parts = _parts(chosen.path)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    files = tuple(inside(folder, folder / name) for name in sorted(parts))
    for path in files:
        if chosen.is_pickled:
            continue
        header = read_header(path)
        names = parts[path.name] or list(header.tensors)
        for name in names:
            if name not in header.tensors or name in tensors:
                raise CheckpointError(
                    f"{chosen.path}: the weight {name[:80]!r} is not in {path.name}, or in two files."
                )
            tensors[name] = header.tensors[name]
    return Weights(chosen.variant, files, tensors, chosen.is_pickled)


def _parts(index: Path) -> dict[str, list[str]]:
    """Return the files that an index names, each with the weights that it holds."""
    try:
        table = read_json(inside(index.parent, index))
    except InputError as error:
        raise CheckpointError(str(error)) from error
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not (isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())):
        raise CheckpointError(f"{index} names no weights.")
    parts: dict[str, list[str]] = {}
    for weight, name in names.items():
        parts.setdefault(name, []).append(weight)
    for name in parts:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names {name[:80]!r}; parts are files of the same folder.")
    if len(parts) > _MOST_PARTS:
        raise CheckpointError(f"{index} names {len(parts)} files.")
    return parts


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of `torch.save`, which is made into nothing else.

    Raises:
        CheckpointError: it is damaged, or holds anything but tensors, numbers and words.
    """
    import torch

    try:
        check_no_pointer(read_start(path, 64), path)
        if zipfile.is_zipfile(path):
            _check_archive(path)
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # unpicklers fail in as many ways as there are pickles
        raise CheckpointError(
            f"{path}: damaged, or more is pickled in it than tensors, which could run code and is not read; save its "
            "state dict as safetensors."
        ) from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not (isinstance(data, dict) and data and all(isinstance(name, str) for name in data)):
        raise CheckpointError(f"{path}: a pickle, but not one of weights by name.")
    for name, value in data.items():
        is_dense = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        if not is_dense or value.is_quantized or value.numel() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name[:80]!r} is no tensor of weights.")
    return {name: value.detach() for name, value in data.items()}


def _check_archive(path: Path) -> None:
    """Refuse an archive whose entries would become larger than the file is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path}: a compressed archive; torch.save writes none.")
