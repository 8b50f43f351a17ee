"""LPIPS against the package itself, and the Frechet distance against its closed form."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import lpips
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.metrics.frechet import Frechet, Gaussian, TorchScriptExtractor, frechet_distance
from latentvid.metrics.lpips import Lpips, PerceptualNetwork


@pytest.fixture(scope="session")
def trunk(assets: Path) -> Path:
    return assets / "weights/squeezenet1_1/features.safetensors"


@pytest.fixture(scope="session")
def network(trunk: Path) -> PerceptualNetwork:
    return PerceptualNetwork("squeeze", trunk=trunk)


def _lpips(network: PerceptualNetwork, video: Tensor, reference: Tensor) -> float:
    metric = Lpips(network=network)
    metric.update(video, reference)
    return metric.compute()["lpips"]


def _witness(net: str) -> nn.Module:
    """The package's own network, its trunk drawn at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()


@pytest.mark.parametrize(("net", "prefix", "suffix"), [("squeeze", "features.", ".safetensors"), ("alex", "", ".pth")])
def test_numbers_are_those_of_the_package(
    net: str, prefix: str, suffix: str, tmp_path: Path, source: Tensor, noise: Tensor
) -> None:
    """Same trunk, same heads, same frames: the package's own forward is the witness."""
    witness = _witness(net)
    weights = {prefix + k.split(".", 1)[1]: v.contiguous() for k, v in witness.net.state_dict().items()}
    path = tmp_path / f"trunk{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    x, y = (source[:2] + 0.2 * noise[:2]).clamp(-1, 1), source[:2]
    x, y = (nn.functional.interpolate(v, size=(64, 64)) for v in (x, y))
    ours = PerceptualNetwork(net, trunk=path)(x, y)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, witness(x, y).flatten().detach(), rtol=1e-5, atol=1e-7)
    assert float(ours.min()) > 0


def test_noise_and_blur_are_ordered(network: PerceptualNetwork, source: Tensor, noise: Tensor) -> None:
    frames = source[:2]
    assert _lpips(network, frames, frames) == pytest.approx(0, abs=1e-7)
    noisy = [_lpips(network, (frames + s * noise[:2]).clamp(-1, 1), frames) for s in (0.02, 0.1, 0.3)]
    assert 0 < noisy[0] < noisy[1] < noisy[2]
    detailed = (frames + 0.3 * noise[:2]).clamp(-1, 1)
    blurred = [_lpips(network, nn.functional.avg_pool2d(detailed, k, 1, k // 2), detailed) for k in (3, 5, 9)]
    assert 0 < blurred[0] < blurred[1] < blurred[2]


def test_the_trunk_is_in_the_protocol(network: PerceptualNetwork, trunk: Path) -> None:
    protocol = Lpips(network=network).protocol()
    assert protocol["trunk_sha256"] == hashlib.sha256(trunk.read_bytes()).hexdigest()
    assert protocol["net"] == "squeeze"


def test_gradients_reach_the_frames_and_only_them(network: PerceptualNetwork, source: Tensor) -> None:
    frames = (0.9 * source[:1]).requires_grad_()
    network.train()(frames, source[:1]).sum().backward()
    assert frames.grad is not None
    assert float(frames.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_autocast_does_not_reach_the_network(network: PerceptualNetwork, source: Tensor) -> None:
    x, y = 0.9 * source[:1], source[:1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, network(x, y))


def test_a_missing_trunk_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"pass trunk=FILE.*Nothing is downloaded"):
        PerceptualNetwork("vgg")
    with pytest.raises(CheckpointError, match="no such file"):
        PerceptualNetwork("vgg", trunk=tmp_path / "absent.pth")


def test_torchvisions_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(safetensors.torch.load_file(trunk), cache / "squeezenet1_1-b8a52dc0.pth")
    assert PerceptualNetwork("squeeze").net == "squeeze"


def test_another_networks_trunk_is_refused(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the trunk"):
        PerceptualNetwork("vgg", trunk=trunk)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PerceptualNetwork("squeeze", trunk=tmp_path / "junk.pth")
    with pytest.raises(UsageError, match="did you mean 'squeeze'"):
        PerceptualNetwork("squeze", trunk=trunk)  # type: ignore[arg-type]


def test_code_in_a_trunk_is_not_run(tmp_path: Path) -> None:
    torch.save({"0.weight": Path("x")}, tmp_path / "trunk.pth")  # any class: weights_only refuses it
    with pytest.raises(CheckpointError, match="cannot be read"):
        PerceptualNetwork("squeeze", trunk=tmp_path / "trunk.pth")


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    """Commuting covariances: |m|^2 + sum (sqrt a - sqrt b)^2; the same after any rotation of both."""
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    shift = torch.tensor([1.0, 2.0, -2.0]).double()
    expected = 9 + float((a.sqrt() - b.sqrt()).square().sum())
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    for turn in (torch.eye(3).double(), rotation):
        cov_a, cov_b = (turn * v @ turn.mT for v in (a, b))
        distance = frechet_distance(turn @ shift, cov_a, torch.zeros(3), cov_b)
        # One variance is zero, and the root of its rounding error (1e-16) is 1e-8.
        assert distance == pytest.approx(expected, rel=1e-7)
        assert frechet_distance(torch.zeros(3), cov_b, turn @ shift, cov_a) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_general_covariances_agrees_with_the_eigenvalues_of_the_product() -> None:
    """tr (A B)^1/2 from the eigenvalues of A B itself, which need no symmetric root."""
    g = torch.Generator().manual_seed(1)
    a, b = (m @ m.mT for m in torch.randn(2, 5, 5, generator=g, dtype=torch.float64))
    cross = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = float(a.trace() + b.trace() - 2 * cross)
    assert frechet_distance(torch.zeros(5), a, torch.zeros(5), b) == pytest.approx(expected, rel=1e-9)


def test_moments_are_those_of_torch() -> None:
    samples = torch.randn(40, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1000
    gaussian = Gaussian()
    for sample in samples:
        gaussian.add(sample)
    torch.testing.assert_close(gaussian.mean, samples.mean(0))
    torch.testing.assert_close(gaussian.covariance, samples.T.cov())


def test_equal_sets_are_at_no_distance_and_windows_are_counted(source: Tensor) -> None:
    metric = Frechet(lambda clip: clip.mean(dim=(3, 4)).flatten(1), num_frames=4, stride=3)
    metric.update(source, source)
    result = metric.compute()
    assert result["frechet"] == pytest.approx(0, abs=1e-6)
    assert result["frechet_clips"] == result["frechet_reference_clips"] == 4  # starts 0 3 6 9 of 13 frames


@pytest.mark.parametrize(("num_frames", "stride", "starts"), [(2, 5, [0, 5, 10]), (5, 5, [0, 5]), (4, 1, range(10))])
def test_windows_start_where_they_should(num_frames: int, stride: int, starts: list[int], source: Tensor) -> None:
    seen: list[Tensor] = []

    def extractor(clip: Tensor) -> Tensor:
        seen.append(clip[0].transpose(0, 1))
        return clip.mean(dim=(2, 3, 4))

    metric = Frechet(extractor, num_frames=num_frames, stride=stride)
    metric.update(source[:6])
    metric.update(source[6:])
    assert len(seen) == len(starts)
    for window, start in zip(seen, starts, strict=True):
        assert torch.equal(window, source[start : start + num_frames])


class _Pool(nn.Module):
    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        return x.mean(dim=(3, 4)) * (2.0 if double else 1.0)


def test_a_torchscript_module_is_an_extractor(tmp_path: Path, source: Tensor) -> None:
    path = tmp_path / "pool.pt"
    torch.jit.script(_Pool()).save(str(path))
    extractor = TorchScriptExtractor(path, size=None, arguments={"double": True})
    clip = source.transpose(0, 1)[None]
    torch.testing.assert_close(extractor(clip), 2 * clip.mean(dim=(3, 4)))
    metric = Frechet(path, num_frames=2)
    metric.update(source, source)
    protocol = metric.protocol()
    assert protocol["extractor"] == "pool.pt"
    assert protocol["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metric.compute()["frechet"] == pytest.approx(0, abs=1e-6)


def test_an_extractor_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="feature extractor"):
        Frechet()
    with pytest.raises(CheckpointError, match="no such file"):
        Frechet(tmp_path / "absent.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a TorchScript"):
        Frechet(tmp_path / "junk.pt")
