"""Video autoencoders in tiles: nothing changes without need, films stay whole, memory is kept; the seam is measured."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.autoencoders.budget import Cost, live_bytes
from latentvid.autoencoders.pretrained.streams import StretchCoder
from latentvid.autoencoders.tiling import Plan, spans
from latentvid.autoencoders.video import VIDEO_NETWORKS, VideoAutoencoder
from latentvid.core.errors import ResourceError
from latentvid.core.rng import Rng
from latentvid.temporal.context import StreamState
from tests.autoencoders.small_video_networks import video_network

KINDS = ("svd", "cogvideox", "wan", "ltx", "hunyuan")
SIZE = (6, 11)
TILE, OVERLAP = (6, 7), 3
"""Two tiles, side by side."""
FRAMES = 11


def autoencoder(kind: str) -> VideoAutoencoder:
    network = video_network(kind)
    found: VideoAutoencoder = VIDEO_NETWORKS.get(type(network).__name__)(network)
    vars(found).update(_encode_cost=Cost(1, 0), _decode_cost=Cost(1, 0))
    return found


def tiled(kind: str, size: tuple[int, int] = SIZE, tile: tuple[int, int] = TILE, overlap: int = OVERLAP):
    """Return an autoencoder that cuts its films so."""
    found = autoencoder(kind)
    found.max_memory = 1 << 40
    found._plan = lambda *_: Plan(found.pass_frames, tile, size, overlap)  # type: ignore[method-assign]
    return found


def film(network: VideoAutoencoder, num_frames: int = FRAMES) -> Tensor:
    """Return a film whose sides are one pixel less than the latents' in the padded one."""
    height, width = (side * network.spatial_factor - 1 for side in SIZE)
    return Rng(3).uniform(num_frames, 3, height, width)[0] * 2 - 1


def latents(network: VideoAutoencoder, num_frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Tensor:
    coarse = Rng(4).normal(network.latent_channels, network.num_latents(num_frames), 3, 6)[0]
    return F.interpolate(coarse, size, mode="bicubic")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_fit_are_what_they_were(kind: str) -> None:
    network = autoencoder(kind)
    clip, z = film(network, 5), latents(network, 5)
    free = [*network.encode([clip]), *network.decode([z])]
    network.max_memory = 1 << 40
    assert network.tiles_per_frame(*clip.shape[-2:]) == 1
    found = [*network.encode([clip]), *network.decode([z])]
    assert all(torch.equal(a, b) for a, b in zip(found, free, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_films_in_tiles_stay_whole_in_any_parts(kind: str) -> None:
    network = tiled(kind)
    clip = film(network)
    found = torch.cat([*network.encode([clip])], dim=1)
    assert found.shape == (network.latent_channels, network.num_latents(FRAMES), *SIZE)
    parts = torch.cat([*network.encode(clip.split(3))], dim=1)
    torch.testing.assert_close(parts, found, atol=1e-5, rtol=0)
    video = torch.cat([*network.decode([found], size=(clip.shape[2], clip.shape[3]))])
    assert video.shape == (network.grid.frames(found.shape[1]), *clip.shape[1:])
    assert len(video) >= FRAMES
    parts = torch.cat([*network.decode(found.split(1, dim=1), size=(clip.shape[2], clip.shape[3]))])
    torch.testing.assert_close(parts, video, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "reach"), [(4, 2), (3, 3)])
@pytest.mark.parametrize("num_frames", [1, 5, 6, 7, 19])
def test_stretches_make_up_the_film(num_frames: int, length: int, reach: int) -> None:
    seen: list[list[int]] = []

    class Numbers(StretchCoder):
        def stretch(self, film: Tensor) -> Tensor:
            seen.append(film.flatten().tolist())
            return film

    def numbers(state: StreamState) -> StretchCoder:
        coder = Numbers(None, state, lambda *_: 1)
        coder.then, coder.first, coder.reach = length, length + reach, reach
        return coder

    coder, passes = numbers(StreamState()), []
    for part in torch.arange(num_frames).view(1, 1, -1, 1, 1).split(2, dim=2):
        passes += coder.push(part)
        coder = numbers(StreamState.from_tensors(coder.state.to_tensors()))
    shown = [part.flatten().tolist() for part in [*passes, *coder.finish()]]
    assert [*itertools.chain(*shown)] == list(range(num_frames))
    for stretch, frames in zip(shown, seen, strict=True):
        first, last = max(0, stretch[0] - reach), min(num_frames - 1, stretch[-1] + reach)
        assert frames == list(range(first, last + 1))


def test_a_tile_decoded_in_stretches_is_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Video Diffusion's decoder, begun anew for every stretch, as far from it as its layers look."""
    network = autoencoder("svd")
    monkeypatch.setattr("latentvid.autoencoders.pretrained.svd.STRETCH", 1)
    num_frames = 3 * network.num_temporal_convs
    z = Rng(4).normal(1, network.latent_channels, num_frames, 4, 4)[0][None][:, 0]
    assert network.decodes_tiles is not None
    with torch.no_grad():
        stream = torch.cat([*network.decodes(network, StreamState(), lambda *_: 8).run([z])], dim=2)
        coder = network.decodes_tiles(network, StreamState(), lambda *_: 8)
        parts = [*coder.run(z.split(7, dim=2))]
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts, dim=2), stream, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "worst", "over_rest"),
    [("svd", 0.16, 1.5), ("cogvideox", 0.1, 1.5), ("wan", 0.1, 1.5), ("ltx", 0.1, 15), ("hunyuan", 0.12, 1.5)],
)
def test_the_seam_is_no_worse_than_the_rest(kind: str, worst: float, over_rest: float) -> None:
    """In shares of the film's spread. LTX has no norms over pictures, so away from the seam it is nearly exact."""
    size, tile, overlap = (8, 26), (8, 17), 8
    z = latents(autoencoder(kind), 5, size)
    whole = torch.cat([*autoencoder(kind).decode([z])])
    error = torch.cat([*tiled(kind, size, tile, overlap).decode([z])]) - whole
    (_, left), (right, _) = spans(size[1], tile[1], overlap)
    factor = whole.shape[-1] // size[1]
    middle = (left + right) * factor // 2
    seam = slice(middle - factor // 2, middle + factor // 2)
    figures = []
    for what in (error, error.diff(dim=-1)):
        at = float(what[..., seam].abs().mean())
        rest = float(torch.cat([what[..., : seam.start], what[..., seam.stop :]], dim=-1).abs().mean())
        figures += [at / float(whole.std()), rest / float(whole.std())]
    assert figures[0] <= worst
    assert figures[0] <= over_rest * figures[1] + 1e-3
    assert figures[2] <= over_rest * figures[3] + 1e-3


slow = pytest.mark.skipif(
    not os.environ.get("LATENTVID_SLOW"), reason="counting every tensor takes half a minute; LATENTVID_SLOW=1 does"
)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        ("wan", (9, 17)),
        ("ltx", (33, 65)),
        ("cogvideox", (17, 33)),
        pytest.param("svd", (67, 89), marks=slow),
        pytest.param("hunyuan", (49, 85), marks=slow),
    ],
)
def test_tiles_keep_the_memory_at_any_length(kind: str, lengths: tuple[int, int]) -> None:
    """Tensors that are alive at one time; the count leaves room for what kernels take besides."""
    network = autoencoder(kind)
    network.tile_overlap = 4
    del vars(network)["_decode_cost"]
    size, area = (8, 24), 8 * 14 * network.spatial_factor**2
    height, width = (side * network.spatial_factor for side in size)
    tile = network._decode_tile_cost
    vars(network)["_decode_cost"] = Cost(1e9, 0)
    held = 2 * tile.state_bytes * area + 2 * tile.picture_bytes * height * width
    network.max_memory = int(tile.frame_bytes * area + held) + 1
    assert network.tiles_per_frame(height, width) == 2
    peaks = [live_bytes(network.decode(latents(network, n, size).split(1, dim=1)))[0] for n in lengths]
    assert max(peaks) <= network.max_memory
    assert peaks[1] <= 1.05 * peaks[0]
    network.max_memory = int(held)
    with pytest.raises(ResourceError, match="[Tt]iles"):
        network.tiles_per_frame(height, width)
    with pytest.raises(ResourceError, match="--max-memory"):
        next(network.decode([latents(network, 1, size)]))


@pytest.mark.parametrize("kind", ["svd", "wan"])
def test_a_memory_limit_makes_tiles_by_itself(kind: str) -> None:
    network = autoencoder(kind)
    network.tile_overlap = 4
    del vars(network)["_encode_cost"]
    factor = network.spatial_factor
    cost = network._encode_cost
    whole = (cost.frame_bytes + cost.state_bytes) * 64 * 64 * factor**2
    network.max_memory = int(1.01 * whole)
    assert network.plan_encode(64 * factor, 64 * factor).num_tiles == 1
    network.max_memory = int(0.8 * whole)
    plan = network.plan_encode(64 * factor, 64 * factor)
    assert plan.num_tiles > 1
    assert network.frames_per_encode(64 * factor, 64 * factor) == network.pass_frames
