"""Every kind of autoencoder on a GPU: what the CPU gives, in every precision, however a film is cut, within limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentvid.autoencoders.base import BaseAutoencoder
from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.video import VIDEO_NETWORKS
from latentvid.core.errors import ResourceError
from latentvid.core.rng import Rng
from latentvid.core.runtime import resolve_runtime
from tests.autoencoders import small_networks, small_video_networks
from tests.gpu.compare import EXACT, HALF, TF32, assert_near, tf32

pytestmark = pytest.mark.gpu
SIZE = (24, 40)
FRAMES = 19
"""More than a window of any architecture."""
IMAGE = small_networks.KINDS
KINDS = [*IMAGE, *(f"temporal {kind}" for kind in IMAGE), *small_video_networks.KINDS]
SLACK = 64 << 20
"""Bytes of cuBLAS's workspaces, which come with the first product and stay."""


def make(kind: str) -> BaseAutoencoder:
    """Return an autoencoder with passes of the shortest length."""
    if kind in IMAGE:
        found: BaseAutoencoder = ImageAutoencoder(small_networks.image_network(kind)).requires_grad_(False)
    elif kind.startswith("temporal "):
        found = small_networks.grown(kind.removeprefix("temporal "), trained=True)
    else:
        network = small_video_networks.video_network(kind)
        found = VIDEO_NETWORKS.get(type(network).__name__)(network)
        vars(found).update(_encode_cost=Cost(1, 0), _decode_cost=Cost(1, 0))
    return found


def film() -> Tensor:
    return Rng(3).uniform(FRAMES, 3, *SIZE)[0] * 2 - 1


def encoded(autoencoder: BaseAutoencoder, chunk: int = FRAMES) -> Tensor:
    return torch.cat([part.cpu() for part in autoencoder.encode(film().split(chunk))], dim=1)


def decoded(autoencoder: BaseAutoencoder, latents: Tensor, chunk: int = 100) -> Tensor:
    parts = autoencoder.decode(latents.split(chunk, dim=1), size=SIZE)
    return torch.cat([part.float().cpu() for part in parts])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_gives_what_the_cpu_gives(kind: str, device: torch.device) -> None:
    autoencoder = make(kind)
    latents = encoded(autoencoder)
    video = decoded(autoencoder, latents)
    assert video.std() > 0.01
    nn.Module.to(autoencoder, device)
    space = autoencoder.latent_space()
    for bound, rounded in ((EXACT, False), (TF32, True)):
        with tf32(allowed=rounded):
            assert_near(encoded(autoencoder), latents, bound, "latents")
            assert_near(decoded(autoencoder, latents.to(device)), video, bound, "frames")
    for chunk in (1, 3):
        assert_near(encoded(autoencoder, chunk), latents, EXACT, f"latents of chunks of {chunk}")
        assert_near(decoded(autoencoder, latents, chunk), video, EXACT, f"frames of chunks of {chunk}")
    assert space == make(kind).latent_space()
    nn.Module.to(autoencoder, device, torch.bfloat16)
    assert_near(encoded(autoencoder), latents, HALF, "latents in bfloat16")
    assert_near(decoded(autoencoder, latents), video, HALF, "frames in bfloat16")


@pytest.mark.parametrize("kind", ["kl", "temporal kl-plain", "svd", "wan"])
def test_tiles_on_the_gpu_are_those_of_the_cpu(kind: str, device: torch.device) -> None:
    autoencoder = make(kind)
    latents = Rng(4).normal(autoencoder.latent_channels, 5, 16, 40)[0]
    autoencoder.tile_overlap = 4  # type: ignore[attr-defined]
    cost = Cost(1.0, 0.0, picture_bytes=0.0)
    vars(autoencoder).update(_decode_cost=cost, _decode_tile_cost=cost)
    autoencoder.max_memory = 16 * 24 * autoencoder.spatial_factor**2
    height, width = (side * autoencoder.spatial_factor for side in (16, 40))
    assert autoencoder.tiles_per_frame(height, width) > 1
    wanted = torch.cat(list(autoencoder.decode([latents])))
    nn.Module.to(autoencoder, device)
    assert_near(torch.cat(list(autoencoder.decode(latents.to(device).split(2, dim=1)))), wanted, EXACT)


def peak_of(device: torch.device, run: object) -> int:
    """Return the most bytes that were allocated during a call; none are counted on the CPU."""
    assert callable(run)
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return int(torch.cuda.max_memory_allocated(device))


@pytest.mark.parametrize(("num_frames", "limit", "is_tiled"), [(32, 1000, False), (12, 320, True)])
def test_a_memory_limit_is_kept(
    num_frames: int, limit: int, is_tiled: bool, device: torch.device, tmp_path: Path
) -> None:
    """Limits in MB, for frames of 512x512, one of which takes about 100 MB and a pass twice that.

    On the CPU, which counts otherwise, sides are a quarter and the limit a sixteenth.
    """
    small_networks.grown("kl-plain", trained=True).save_pretrained(tmp_path / "vae")
    on_gpu = device.type == "cuda"
    side, budget = (256, limit * 10**6) if on_gpu else (64, limit * 10**6 // 16)
    held = torch.cuda.memory_allocated(device) if on_gpu else 0
    autoencoder = load_image_autoencoder(
        tmp_path / "vae", runtime=resolve_runtime(str(device), "fp32"), max_memory=held + budget if on_gpu else None
    )
    if not on_gpu:
        autoencoder.max_memory, autoencoder.tile_overlap = int(0.8 * budget), 4
    autoencoder.cpu_memory_format = torch.contiguous_format
    latents = Rng(1).normal(3, num_frames, side, side)[0]
    plan = autoencoder.plan_decode(2 * side, 2 * side)
    assert (plan.num_tiles > 1) is is_tiled
    assert plan.frames < num_frames or is_tiled
    parts: list[Tensor] = []

    def run() -> None:
        parts.extend(part.cpu() for part in autoencoder.decode([latents]))

    with torch.no_grad():
        assert peak_of(device, run) <= held + budget
        found: list[Tensor] = []
        most = peak_of(device, lambda: found.append(autoencoder.decode_chunk(latents[None]).cpu()))
    assert not on_gpu or most > held + budget, "the whole would have fitted, so nothing was shown"
    whole = found[0][0].transpose(0, 1).clamp(-1, 1)
    if is_tiled:
        assert (torch.cat(parts) - whole).abs().mean() < 0.1 * whole.std()
    else:
        assert_near(torch.cat(parts), whole, EXACT)


@pytest.mark.parametrize("kind", ["svd", "wan"])
def test_video_autoencoders_keep_a_memory_limit(kind: str, device: torch.device) -> None:
    network = small_video_networks.video_network(kind)
    autoencoder = VIDEO_NETWORKS.get(type(network).__name__)(network)
    nn.Module.to(autoencoder, device)
    side = 512 if device.type == "cuda" else 64
    autoencoder.max_memory = int(autoencoder._decode_cost.pass_peak(side**2, 2))
    latent = side // autoencoder.spatial_factor
    latents = Rng(1).normal(autoencoder.latent_channels, autoencoder.num_latents(25), latent, latent)[0]
    frames: list[int] = []
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    peak = peak_of(device, lambda: frames.extend(len(part.cpu()) for part in autoencoder.decode([latents])))
    assert sum(frames) == 25
    assert peak <= held + autoencoder.max_memory + SLACK
    autoencoder.max_memory = 1
    with pytest.raises(ResourceError, match="--max-memory"):
        list(autoencoder.decode([latents]))
