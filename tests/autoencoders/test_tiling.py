"""Tiles: they cover the picture, add up to it, carry the past, keep the memory; and what they change, measured."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.tiling import Plan, SharedNorms, plan_passes, run_tiles, spans
from latentvid.core.errors import ResourceError
from latentvid.core.rng import Rng
from tests.autoencoders.small_networks import grown, image_network

SIZE = (24, 33)
TILES = Plan(2, (16, 18), SIZE, 8)


def latents(network: ImageAutoencoder, frames: int = 5) -> Tensor:
    coarse = Rng(4).normal(network.latent_channels, frames, 6, 8)[0]
    return nn.functional.interpolate(coarse, SIZE, mode="bicubic")


def limited(network: ImageAutoencoder, plan: Plan) -> ImageAutoencoder:
    """Make a network cut its films as `plan` says."""
    network._plan = lambda *_: plan  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize(("length", "size", "overlap"), [(10, 6, 2), (100, 32, 8), (33, 18, 8), (9, 9, 4), (40, 17, 8)])
def test_spans_cover_a_side_and_overlap(length: int, size: int, overlap: int) -> None:
    found = spans(length, size, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(stop - start == size for start, stop in found)
    assert all(before[1] - after[0] >= overlap for before, after in itertools.pairwise(found))


def test_tiles_of_a_picture_add_up_to_it() -> None:
    picture = Rng(0).normal(2, *SIZE)
    torch.testing.assert_close(
        run_tiles(picture, TILES, lambda tile, _: tile.clone(), None, factor_in=1, factor_out=1), picture
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_films_in_tiles_are_the_same_in_any_parts(frames: int) -> None:
    network = limited(grown("tiny", trained=True), TILES)
    z = latents(network)
    whole = torch.cat(list(network.decode([z])))
    parts = torch.cat(list(network.decode(z.split(frames, dim=1))))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    decoder = network.film_decoder()
    first, rest = decoder.push(z[:, :2]), decoder.push(z[:, 2:])
    torch.testing.assert_close(torch.cat([first, rest]), whole, atol=1e-5, rtol=0)
    limited(network, Plan(2, (16, 24), SIZE, 8))
    with pytest.raises(ResourceError, match="another size"):
        decoder.push(z)


def test_tiles_of_a_network_that_looks_no_further_than_their_margin_are_exact() -> None:
    """A decoder without norms and attention, whose reach is less than a quarter of the overlap."""
    image = image_network("tiny")
    for module in image.decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.data[..., [0, 0, 2, 2], [0, 2, 0, 2]] = 0
            module.weight.data[:, :, 0] = module.weight.data[:, :, 2] = 0
            module.weight.data[:, :, :, 0] = module.weight.data[:, :, :, 2] = 0
    network = ImageAutoencoder(image)
    z = latents(network, 2)
    whole = torch.cat(list(network.decode([z])))
    tiled = torch.cat(list(limited(network, TILES).decode([z])))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "worst"), [("tiny", 0.002), ("kl-plain", 0.15), ("kl", 0.25)])
def test_the_seam_is_no_worse_than_the_rest(kind: str, worst: float) -> None:
    """Mean absolute error against the whole picture at the middle of overlaps, and elsewhere.

    Over the spread of the picture, 0.06 % and 0.03 % for the network without norms, 11 % and 14 % with norms, 19 % and
    17 % with attention too. Weights are random: what is true of trained ones is the comparison of the two. With
    statistics of each tile's own it was 22 % and 28 %, 26 % and 26 %.
    """
    network = grown(kind, trained=True)
    z = latents(network)
    whole = torch.cat(list(network.decode([z])))
    tiled = torch.cat(list(limited(network, TILES).decode([z])))
    error = (tiled - whole).abs()
    seam = torch.zeros(error.shape[-2:], dtype=torch.bool)
    for side, axis in ((TILES.rows, 0), (TILES.columns, 1)):
        for before, after in itertools.pairwise(side):
            middle = (before[1] + after[0]) * network.spatial_factor // 2
            seam.movedim(axis, 0)[middle - 2 : middle + 2] = True
    at, inside = float(error[..., seam].mean()), float(error[..., ~seam].mean())
    assert at <= worst * float(whole.std())
    assert at <= 1.5 * inside + 1e-3
    # A line along the seam would be a difference of neighbours that the whole picture does not have.
    step = (tiled - whole).diff(dim=-1).abs()
    at_step, inside_step = float(step[..., seam[:, 1:]].mean()), float(step[..., ~seam[:, 1:]].mean())
    assert at_step <= 1.5 * inside_step + 1e-3


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_encoding_in_tiles_comes_near(kind: str) -> None:
    network = ImageAutoencoder(image_network(kind))
    factor = network.spatial_factor
    video = Rng(1).uniform(2, 3, SIZE[0] * factor // 4, SIZE[1] * factor // 4)[0] * 2 - 1
    video = nn.functional.interpolate(video, scale_factor=4, mode="bicubic").clamp(-1, 1)
    (mean, logvar), *_ = network.encode_posterior([video])
    size = (mean.shape[-2], mean.shape[-1])
    (tiled, tiled_logvar), *_ = limited(network, Plan(2, (16, 18), size, 8)).encode_posterior([video])
    assert tiled.shape == mean.shape
    assert (tiled_logvar is None) == (logvar is None)
    assert (tiled - mean).abs().mean() < (0.01 if kind == "tiny" else 0.2) * mean.std()


@pytest.mark.parametrize("kind", ["tiny", "kl-plain"])
def test_a_memory_limit_makes_tiles_by_itself(kind: str) -> None:
    network = grown(kind, trained=True)
    network.tile_overlap = 8
    height, width = (side * network.spatial_factor for side in SIZE)
    vars(network)["_decode_cost"] = Cost(frame_bytes=1000.0, state_bytes=10.0)
    network.max_memory = 1050 * height * width
    assert network.tiles_per_frame(height, width) == 1
    network.max_memory = 900 * height * width
    assert network.tiles_per_frame(height, width) > 1
    video = torch.cat(list(network.decode([latents(network, 3)])))
    assert video.shape == (3, 3, height, width)
    network.max_memory = 10 * height * width
    with pytest.raises(ResourceError, match="--max-memory"):
        network.tiles_per_frame(height, width)


def test_plans_keep_the_memory_with_the_fewest_tiles() -> None:
    cost = Cost(frame_bytes=1000.0, state_bytes=100.0, pass_bytes=50.0)
    size, factor = (64, 128), 8
    pixels = 64 * 128 * 64
    assert plan_passes(cost, size, factor, None, overlap=8).num_tiles == 1
    whole = plan_passes(cost, size, factor, 3200 * pixels, overlap=8)
    assert (whole.frames, whole.num_tiles) == (3, 1)
    counts = []
    for share in (1000, 600, 400):
        plan = plan_passes(cost, size, factor, share * pixels, overlap=8)
        area = plan.tile[0] * plan.tile[1] * factor**2
        held = plan.frames * cost.frame_bytes + cost.state_bytes * plan.num_tiles + cost.pass_bytes
        assert held * area <= share * pixels
        counts.append(plan.num_tiles)
    assert 1 < counts[0] <= counts[1] <= counts[2]
    with pytest.raises(ResourceError, match="[Tt]iles"):
        plan_passes(cost, size, factor, 110 * pixels, overlap=8)


def test_tiles_that_share_norms_are_the_picture() -> None:
    """Halves of a picture, two frames one after another: statistics are those of the whole, each frame its own."""
    norm = nn.GroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    frames = Rng(0).normal(2, 1, 4, 6, 8)[0] * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1) + 0.5
    norms = SharedNorms(norm, 2)

    def run() -> Tensor:
        halves = []
        for half in frames.split(4, dim=-1):
            norms.begin_tile()
            halves.append(torch.stack([norm(frame) for frame in half]))
        return torch.cat(halves, dim=-1)

    expected = torch.stack([norm(frame) for frame in frames])
    torch.testing.assert_close(norms.share(run), expected, atol=1e-5, rtol=1e-5)
    frames = frames.flip(0)
    torch.testing.assert_close(norms.share(run), expected.flip(0), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_told_with_what_would() -> None:
    cost, size = Cost(1000, 100), (64, 96)
    with pytest.raises(ResourceError, match=r"In tiles it needs about [0-9.]+ MB\.") as found:
        plan_passes(cost, size, 1, 2_000_000, overlap=16)
    least = 1e6 * float(str(found.value).split("about ")[-1].split()[0])
    assert plan_passes(cost, size, 1, int(1.05 * least), overlap=16).num_tiles > 1
    with pytest.raises(ResourceError):
        plan_passes(cost, size, 1, int(0.95 * least), overlap=16)
