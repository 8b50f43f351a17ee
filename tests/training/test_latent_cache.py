"""The latent cache: interrupted builds go on, damage is told, numbers mean the clips they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError
from latentvid.training import latent_cache
from latentvid.training.latent_cache import LatentCache, build_cache, cache_name

NUM_CLIPS = 7


class Clips:
    """Clip i is of the grey level i; `fails_at` stands for a kill."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.asked: list[int] = []

    def __len__(self) -> int:
        return NUM_CLIPS

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        if index == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        return torch.full((2, 3, 4, 4), index, dtype=torch.uint8), [f"clip {index}"]


def encode(video: Tensor) -> Tensor:
    """[b 3 t h w] -> [b 1 t 2 2]"""
    return video[:, :1, :, ::2, ::2]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "SHARD", 3)


def check(cache: LatentCache) -> None:
    assert len(cache) == NUM_CLIPS
    for k in range(NUM_CLIPS):
        assert cache.captions[k] == [f"clip {k}"]
        assert cache.latents(k).shape == (1, 2, 2, 2)
        assert cache.latents(k).dtype == torch.float32
        torch.testing.assert_close(cache.latents(k), torch.full((1, 2, 2, 2), k / 127.5 - 1), atol=1e-3, rtol=0)


def test_clips_are_encoded_once_and_told_of(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = Clips()
    check(build_cache(source, encode, tmp_path / "new" / "cache", on_clip=lambda *at: told.append(at)))
    assert source.asked == list(range(NUM_CLIPS))
    assert told[-1] == (NUM_CLIPS, NUM_CLIPS)
    again = Clips()
    check(build_cache(again, encode, tmp_path / "new" / "cache"))
    assert again.asked == []


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_cache(Clips(fails_at=4), encode, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.safetensors"]
    source = Clips()
    check(build_cache(source, encode, tmp_path))
    assert source.asked == [3, 4, 5, 6]


def test_pixels_are_kept_where_wanted(tmp_path: Path) -> None:
    cache = build_cache(Clips(), encode, tmp_path, keep_pixels=True)
    assert torch.equal(cache.video(5), Clips().clip(5)[0])


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_shard_is_told(content: bytes | None, tmp_path: Path) -> None:
    build_cache(Clips(), encode, tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10] if content is None else content)
    for open_again in (lambda: LatentCache(tmp_path), lambda: build_cache(Clips(), encode, tmp_path)):
        with pytest.raises(CheckpointError, match="shard-00001.safetensors is damaged .*; delete it and prepare"):
            open_again()


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    build_cache(Clips(), encode, tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks clips before shard-00002"):
        LatentCache(tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no latent shards"):
        LatentCache(tmp_path)


def test_names_change_with_whatever_the_latents_depend_on() -> None:
    names = {cache_name("a", "b"), cache_name("a", "c"), cache_name("ab"), cache_name("b", "a")}
    assert len(names) == 4
    assert cache_name("a", "b") == cache_name("a", "b")
