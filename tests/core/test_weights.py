"""Weights in folders: which files are taken, and that pickles become tensors or nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentvid.core.errors import CheckpointError
from latentvid.core.weights import building, find_weights, read_weights

STEM = "diffusion_pytorch_model"


def put(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        weights = {"w": torch.full((2,), float(number))}
        save_file(weights, folder / name) if name.endswith(".safetensors") else torch.save(weights, folder / name)


def parts(folder: Path, variant: str, suffix: str = "safetensors") -> None:
    """Write two parts and their index, as diffusers does."""
    dot = f".{variant}" if variant else ""
    names = [f"{STEM}{dot}-{k:05d}-of-00002.{suffix}" for k in (1, 2)]
    for weight, name in zip("ab", names, strict=True):
        value = {weight: torch.zeros(3)}
        save_file(value, folder / name) if suffix == "safetensors" else torch.save(value, folder / name)
    table = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / f"{STEM}.{suffix}.index{dot}.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("names", "variant", "taken"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "fp16", f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "ema", f"{STEM}.safetensors"),
        ([f"{STEM}.fp16.safetensors", f"{STEM}.bin"], None, f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.bin", f"{STEM}.fp16.bin"], "fp16", f"{STEM}.fp16.bin"),
        (["model.non_ema.safetensors", "pytorch_model.bin"], None, "model.non_ema.safetensors"),
        (["vae-ft-mse-840000.safetensors"], None, "vae-ft-mse-840000.safetensors"),
        (["weights.pt"], None, "weights.pt"),
        (["old.ckpt"], None, "old.ckpt"),
    ],
)
def test_the_right_file_is_taken(tmp_path: Path, names: list[str], variant: str | None, taken: str) -> None:
    put(tmp_path, *names)
    found = find_weights(tmp_path, variant)
    assert [file.name for file in found.files] == [taken]
    assert read_weights(found)["w"][0] == names.index(taken)


@pytest.mark.parametrize(
    ("names", "variant", "why"),
    [
        ([], None, "no weights"),
        (["a.safetensors", "b.safetensors"], None, "none has a usual name"),
        ([f"{STEM}.fp16.safetensors", f"{STEM}.ema.safetensors"], None, "variant="),
        ([f"{STEM}.fp16.safetensors"], "ema", "not 'ema'"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path: Path, names: list[str], variant: str | None, why: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(CheckpointError, match=why):
        find_weights(tmp_path, variant)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_parts_are_joined(tmp_path: Path, variant: str, suffix: str) -> None:
    parts(tmp_path, variant, suffix)
    found = find_weights(tmp_path, variant)
    assert (len(found.files), found.variant) == (2, variant)
    assert read_weights(found).keys() == {"a", "b"}


def test_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc" / "vae"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    put(blobs, "blob.safetensors")
    (snapshot / f"{STEM}.safetensors").symlink_to(blobs / "blob.safetensors")
    assert read_weights(find_weights(snapshot)).keys() == {"w"}
    put(tmp_path, "other.safetensors")
    (snapshot / f"{STEM}.safetensors").unlink()
    (snapshot / f"{STEM}.safetensors").symlink_to(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="leads out of"):
        find_weights(snapshot)


@pytest.mark.parametrize(
    "content", [{"state_dict": {"w": torch.ones(2)}, "step": 3}, {"w": nn.Parameter(torch.ones(2))}]
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_of_tensors_are_read(tmp_path: Path, content: dict[str, Any], is_zip: bool) -> None:
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert torch.equal(read_weights(find_weights(tmp_path))["w"], torch.ones(2))


@pytest.mark.parametrize(
    "content",
    [{"w": Path("x")}, [1], {}, {"w": 3}, {3: torch.ones(1)}, {"w": torch.ones(1).expand(1000)}, {"w": nn.Linear(1, 1)},
     {"w": torch.ones(2).to_sparse()}, {"w": torch.zeros(2, device="meta")}],
)  # fmt: skip
def test_pickles_of_anything_else_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="a.bin"):
        read_weights(find_weights(tmp_path))


def test_networks_stop_growing_where_there_are_no_weights_for_them() -> None:
    def build(depth: int) -> None:
        nn.ModuleList(nn.Linear(1, 1) for _ in range(depth))

    with building(20):
        build(10)
        other = threading.Thread(target=build, args=(1000,))  # is none of it
        other.start()
        other.join()
    with pytest.raises(CheckpointError, match="far more weights"), building(20):
        build(1000)
    with pytest.raises(CheckpointError, match="far more layers"), building(20):
        nn.ModuleList(nn.Identity() for _ in range(10_000))
    build(1000)
