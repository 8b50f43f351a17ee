"""Encoding on a Ray cluster: the plain batch's files, byte for byte; one sentence where there is no Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.batch import encode_files
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_autoencoder
from latentvid.autoencoders.ray_batch import Pool, RayOptions, encode_files_on_ray, pool_for
from latentvid.core.errors import ResourceError, UsageError
from tests.autoencoders.small_networks import image_network
from tests.autoencoders.test_codec import clip


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    image_network("tiny").save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_without_ray_there_is_a_sentence(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    job = (clip(tmp_path / "a.mp4", frames=2), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"pip install 'latentvid\[ray\]'"):
        list(encode_files_on_ray(vae, [job]))
    assert not job[1].exists()


def test_workers_never_ask_for_more_than_there_is() -> None:
    threads = torch.get_num_threads()
    two = [{"CPU": 2.0}]
    assert pool_for(two, RayOptions()) == Pool(1, 2, 0, min(2, threads))
    assert pool_for(two, RayOptions(num_workers=2)) == Pool(2, 1, 0, 1)
    assert pool_for([{"CPU": 1.0}], RayOptions()).cpus == 1
    assert pool_for([{"CPU": 8.0}, {"CPU": 4.0}], RayOptions(num_workers=2)).cpus == 6
    mixed = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]
    assert pool_for(mixed, RayOptions()) == Pool(2, 1, 1, threads)
    assert pool_for(mixed, RayOptions(device="cpu")).gpus == 0
    with pytest.raises(ResourceError, match="offers a GPU"):
        pool_for(two, RayOptions(device="cuda"))
    with pytest.raises(ResourceError, match="offers a CPU"):
        pool_for([{}], RayOptions())


def test_a_cluster_makes_the_same_files(vae: Path, tmp_path: Path) -> None:
    """As many workers as CPUs: where tasks that read would wait for a CPU for ever, were there any."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    clips = [clip(tmp_path / f"{name}.mp4", frames=3) for name in "abc"]
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    sources = [*clips, tmp_path / "bad.mp4"]
    plain = [(path, tmp_path / "plain" / f"{path.name}.safetensors") for path in sources]
    spread = [(path, tmp_path / "ray" / f"{path.name}.safetensors") for path in sources]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        autoencoder = load_autoencoder(vae)
        assert isinstance(autoencoder, ImageAutoencoder)
        list(encode_files(autoencoder, plain))
    finally:
        torch.set_num_threads(threads)
    options = RayOptions("local", num_workers=2)
    found = list(encode_files_on_ray(vae, spread, options=options))
    assert sorted(r["status"] for r in found) == ["encoded", "encoded", "encoded", "failed"]
    for (_, one), (_, other) in zip(plain[:3], spread[:3], strict=True):
        assert one.read_bytes() == other.read_bytes()
    spread[1][1].unlink()
    again = {r["source"]: r["status"] for r in encode_files_on_ray(vae, spread, options=options)}
    assert again[str(sources[0])] == "skipped"
    assert again[str(sources[1])] == "encoded"
