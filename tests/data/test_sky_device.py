"""The sky world on a device: the frames of the world on the host, whatever is mixed in a batch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentvid.core.rng import Rng
from latentvid.data.worlds import sky, sky_device
from latentvid.data.worlds.sky_captions import COVERS, GROUNDS, TIMES
from latentvid.data.worlds.sky_device import render_on_device

# Every ground at every time under every sky.
SCENES = [
    replace(sky.sample_scene(Rng(5).child(f"{i}")), ground=ground, time_of_day=time, cloud_cover=cover)
    for i, (ground, time, cover) in enumerate(itertools.product(GROUNDS, TIMES, COVERS))
]
CLEAR = [scene for scene in SCENES if scene.cloud_cover == "clear" and scene.time_of_day != "night"]


def on_host(scenes: list[sky.SkyScene], num_frames: int, height: int, width: int, starts: list[int]) -> np.ndarray:
    return np.stack(
        [sky.render(s, num_frames, height, width, start_frame=n) for s, n in zip(scenes, starts, strict=True)]
    )


def on_cuda(height: int, width: int, latest: int) -> object:
    marks = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
    return pytest.param(height, width, latest, "cuda", marks=marks)


@pytest.mark.parametrize(
    ("height", "width", "latest", "device"),
    [(40, 56, 40, "cpu"), (33, 91, 100_000, "cpu"), (48, 17, 0, "cpu"), (1, 1, 3, "cpu"), on_cuda(40, 56, 1000)],
)
def test_frames_are_those_of_the_host(height: int, width: int, latest: int, device: str) -> None:
    starts = [i * latest // (len(SCENES) - 1) for i in range(len(SCENES))]
    clips = render_on_device(SCENES, 2, height, width, start_frames=starts, device=device, chunk=23)
    assert clips.shape == (len(SCENES), 2, 3, height, width)
    assert clips.dtype == torch.uint8
    off = np.abs(clips.cpu().numpy().astype(int) - on_host(SCENES, 2, height, width, starts))
    # Rounding may tip a level, and a pixel at an edge may fall to the other side.
    assert (off > 1).mean() <= 1e-3
    assert (off > 0).mean() <= 1e-3
    assert off.max() <= 4


def test_a_scene_looks_the_same_in_any_batch_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [SCENES[i] for i in (2, 15, 31, 38, 47, 59)]
    whole = render_on_device(some, 5, 32, 48, device="cpu").int()
    alone = torch.cat([render_on_device([scene], 5, 32, 48, device="cpu") for scene in some]).int()
    later = render_on_device(some, 2, 32, 48, start_frames=[3] * len(some), device="cpu").int()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = render_on_device(some, 5, 32, 48, device="cpu").int()
    monkeypatch.setattr(sky_device, "_MEMORY", 1)  # one scene and one frame at a time
    small = render_on_device(some, 5, 32, 48, device="cpu").int()
    for clips, others in ((whole, alone), (whole[:, 3:], later), (whole, mixed), (whole, small)):
        assert (clips - others).abs().max() <= 1
        assert (clips != others).float().mean() <= 1e-3
    assert not torch.equal(whole[:, 0], whole[:, 4])


@pytest.mark.parametrize("scenes", [CLEAR, SCENES[:1], []], ids=["one layer of clouds, no stars", "one", "none"])
def test_batches_may_lack_layers(scenes: list[sky.SkyScene]) -> None:
    clips = render_on_device(scenes, 1, 24, 32, device="cpu")
    assert clips.shape == (len(scenes), 1, 3, 24, 32)
    if scenes:
        off = np.abs(clips.numpy().astype(int) - on_host(scenes, 1, 24, 32, [0] * len(scenes)))
        assert off.max() <= 1


def test_lattices_of_the_device_show_other_skies_of_the_same_kind() -> None:
    some = [scene for scene in SCENES if scene.ground in ("sea", "mountains")]
    host = render_on_device(some, 2, 32, 40, device="cpu").float()
    own = render_on_device(some, 2, 32, 40, device="cpu", lattices="device").float()
    last = render_on_device(some[-1:], 1, 32, 40, start_frames=[1], device="cpu", lattices="device").float()
    assert (own[-1, 1] - last[0, 0]).abs().max() <= 1
    assert ((own - host).abs().mean((1, 2, 3, 4)) > 0.1).all()
    assert (own.mean((0, 1, 3, 4)) - host.mean((0, 1, 3, 4))).abs().max() < 4
    assert abs(own.std() / host.std() - 1) < 0.05


def test_no_tensor_stays_on_the_host() -> None:
    """The meta device, which computes nothing, refuses to mix with tensors of the host as any other would."""
    assert render_on_device(SCENES, 3, 32, 40, device="meta").device.type == "meta"


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot render"):
        render_on_device(SCENES[:2], 1, 8, 8, start_frames=[0], device="cpu")
    with pytest.raises(ValueError, match="cannot render"):
        render_on_device(SCENES[:1], 1, 8, 8, start_frames=[-1], device="cpu")
