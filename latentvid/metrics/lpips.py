"""LPIPS: learned perceptual distance, with the trunk from a file that the user has; nothing is downloaded.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924. Network and linear heads
are those of the `lpips` package (v0.1). Another training of the trunk gives other numbers, so the trunk's SHA-256
belongs beside every result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latentvid.core.errors import CheckpointError, UsageError, did_you_mean
from latentvid.core.files import sha256_of
from latentvid.metrics.metric import check_pair, mean

Net = Literal["squeeze", "alex", "vgg"]

SMALLEST = 32
"""Pixels; below this the deepest layers have nothing left to look at."""

_TORCHVISION_FILES = {
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
}


class PerceptualNetwork(nn.Module):
    """The frozen LPIPS network: two batches of frames [n 3 h w] in [-1, 1] -> their distances [n], float32.

    Gradients flow to the frames, so it serves as a training loss too; its own parameters take none.
    """

    def __init__(self, net: Net = "squeeze", *, trunk: str | Path | None = None) -> None:
        """Build the network and load its trunk.

        Args:
            net: which trunk: "squeeze" (SqueezeNet 1.1), "alex" (AlexNet) or "vgg" (VGG-16).
            trunk: its weights under torchvision's names (`features.0.weight` or `0.weight`), .safetensors or .pth.
                None looks into torchvision's own cache.

        Raises:
            UsageError: `net` is not known.
            CheckpointError: the trunk is missing, damaged, or another network's.
        """
        super().__init__()
        if net not in get_args(Net):
            raise UsageError(f"lpips: net={net!r} is not known{did_you_mean(str(net), get_args(Net))}.")
        path = _find_trunk(net, trunk)
        self.net: Net = net
        self.trunk_sha256 = sha256_of(path)
        self.network = _build(net)
        _load_trunk(self.network.get_submodule("net"), _read(path), path)
        self.network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualNetwork:
        """Stay in evaluation mode: the heads' dropout must not switch on inside a training step."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < SMALLEST:
            raise UsageError(f"lpips needs frames of at least {SMALLEST}x{SMALLEST} pixels, not {list(x.shape[-2:])}.")
        with torch.autocast(x.device.type, enabled=False):
            return self.network(x.float(), y.float()).flatten()

    def protocol(self) -> dict[str, Any]:
        """Return what identifies the numbers."""
        return {"net": self.net, "trunk_sha256": self.trunk_sha256, "heads": f"lpips {version('lpips')}, v0.1"}


class Lpips:
    """`lpips`: the mean over frames of the perceptual distance to the source; 0 is identical.

    Args:
        net, trunk: see `PerceptualNetwork`.
        device: where the network runs.
        network: one that is loaded already, in place of the three above.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(
        self,
        *,
        net: Net = "squeeze",
        trunk: str | Path | None = None,
        device: str | torch.device = "cpu",
        network: PerceptualNetwork | None = None,
    ) -> None:
        self.network = network or PerceptualNetwork(net, trunk=trunk).to(device)
        self.reset()

    def reset(self) -> None:
        self._values: list[float] = []

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        reference = check_pair(video, reference, "lpips")
        device = next(self.network.parameters()).device
        for x, y in zip(video, reference, strict=True):
            with torch.no_grad():
                pair = (frame[None].to(device).float().clamp(-1, 1) for frame in (x, y))
                self._values.append(float(self.network(*pair)))

    def end_clip(self) -> None:
        """Nothing to close: frames are compared one by one."""

    def compute(self) -> dict[str, float]:
        return {"lpips": mean(self._values)} if self._values else {}

    def protocol(self) -> dict[str, Any]:
        return {"lpips": "mean over frames", "pixels": "RGB, clamped", **self.network.protocol()}


def _find_trunk(net: Net, trunk: str | Path | None) -> Path:
    if trunk is not None:
        if not Path(trunk).is_file():
            raise CheckpointError(f"{trunk}: no such file; lpips needs the weights of its {net} trunk there.")
        return Path(trunk)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION_FILES[net]
    if not cached.is_file():
        raise CheckpointError(
            f"lpips has no weights for its {net} trunk: pass trunk=FILE, torchvision-named (features.0.weight ...) "
            f".safetensors or .pth, or put torchvision's {cached.name} at {cached}. Nothing is downloaded."
        )
    return cached


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for one fact: this is no weight file
        raise CheckpointError(f"{path}: cannot be read as weights ({type(error).__name__}).") from error
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: holds a {type(weights).__name__}, not named weights.")
    return weights


def _build(net: Net) -> nn.Module:
    """Return the package's network with its heads loaded and its trunk empty (on the meta device)."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # it names torchvision's networks the way of 2020
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    missing = network.load_state_dict(_read(heads), strict=False, assign=True).missing_keys
    # "lins.0" is "lin0" again: the package lists the same modules twice.
    assert all(key.startswith(("net.", "scaling_layer.", "lins.")) for key in missing)
    return network


def _load_trunk(trunk: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill the trunk, whose layers keep torchvision's numbers inside their slices, from torchvision-named weights."""
    renamed = {}
    for key, empty in trunk.state_dict().items():  # "slice2.3.squeeze.weight"
        name = key.split(".", 1)[1]
        found = weights.get(f"features.{name}", weights.get(name))
        if not isinstance(found, Tensor) or found.shape != empty.shape:
            has = "missing" if not isinstance(found, Tensor) else f"{list(found.shape)}"
            raise CheckpointError(
                f"{path}: not the trunk that was asked for: features.{name} is {has}, not {list(empty.shape)}."
            )
        renamed[key] = found.float()
    trunk.load_state_dict(renamed, assign=True)
