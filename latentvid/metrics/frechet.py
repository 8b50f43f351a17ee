"""Frechet distance between two sets of clips in the space of a feature extractor that the user names.

FVD ("Towards Accurate Generative Models of Video", arXiv:1812.01717) is this with an I3D network. The number depends
on the extractor, the clip length, the stride, the resizing and the count of clips, so all of them are in the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import sha256_of
from latentvid.metrics.metric import check_video

Extractor = Callable[[Tensor], Tensor]
"""[1 3 t h w] in [-1, 1] -> features [1 d] (further axes are averaged away)."""


class TorchScriptExtractor:
    """A TorchScript module as feature extractor.

    Args:
        path: the module. TorchScript is a program; run only files you trust.
        size: frames are resized (bilinear, antialiased) to size x size first; None leaves them.
        is_image: the module takes frames [n 3 h w]; features are averaged over the clip.
        arguments: keyword arguments of the module's forward. The I3D that StyleGAN-V published wants
            {"rescale": False, "resize": False, "return_features": True} and size=224.
        device: where it runs.

    Raises:
        CheckpointError: the file is missing or no TorchScript.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | None = 224,
        is_image: bool = False,
        arguments: Mapping[str, bool | int | float] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such file; the Frechet distance needs a TorchScript extractor there.")
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not a TorchScript module.") from error
        self.size, self.is_image, self.arguments, self.device = size, is_image, dict(arguments or {}), device
        self.sha256 = sha256_of(path)

    def __call__(self, clip: Tensor) -> Tensor:
        frames = clip[0].transpose(0, 1).to(self.device)  # [t 3 h w]
        if self.size:
            frames = F.interpolate(frames, size=(self.size, self.size), mode="bilinear", antialias=True)
        if self.is_image:
            return self.module(frames, **self.arguments).flatten(2).mean(2).mean(0, keepdim=True)
        return self.module(frames.transpose(0, 1)[None], **self.arguments)

    def protocol(self) -> dict[str, Any]:
        """Return what identifies the features."""
        return {
            "sha256": self.sha256,
            "resize": f"bilinear, antialiased, {self.size}x{self.size}" if self.size else "none",
            "is_image": self.is_image,
            "arguments": self.arguments,
        }


class Gaussian:
    """Mean and covariance of feature vectors, gathered one by one in float64 (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take one vector [d]."""
        features = features.detach().cpu().double()
        if self._mean is None or self._scatter is None:
            self._mean = torch.zeros_like(features)
            self._scatter = torch.zeros(len(features), len(features), dtype=torch.float64)
        self.count += 1
        before = features - self._mean
        self._mean = self._mean + before / self.count
        self._scatter += torch.outer(before, features - self._mean)

    @property
    def mean(self) -> Tensor:
        """Float64 [d]."""
        assert self._mean is not None
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased, float64 [d d]."""
        assert self._scatter is not None
        return self._scatter / (self.count - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of two Gaussians, in float64.

    Symmetric eigenvalues throughout, so rank-deficient covariances (fewer clips than dimensions) are no trouble.
    """
    mean_a, cov_a, mean_b, cov_b = (value.double() for value in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


class Frechet:
    """`frechet`: the distance between the clips given as `video` and those given as `reference`.

    Both are cut into clips of `num_frames`, `stride` apart; frames left over at the end of a clip are not used.
    The two sets need not pair: `update` takes the one under test, `update_reference` the other; a `reference`
    given to `update` goes there too.

    Args:
        extractor: a callable, or the path of a TorchScript module.
        name: what the report calls the extractor.
        num_frames: frames per clip; 1 with an image network gives FID.
        stride: frames between the starts of clips; None is num_frames.
    """

    is_over_set: ClassVar[bool] = True

    def __init__(
        self,
        extractor: Extractor | str | Path | None = None,
        *,
        name: str | None = None,
        num_frames: int = 16,
        stride: int | None = None,
    ) -> None:
        if extractor is None:
            raise UsageError("frechet needs a feature extractor: pass the path of a TorchScript module (I3D, say).")
        if num_frames < 1 or (stride is not None and stride < 1):
            raise UsageError(f"frechet: num_frames={num_frames} and stride={stride} must be at least 1.")
        self.extractor = TorchScriptExtractor(extractor) if isinstance(extractor, str | Path) else extractor
        self.name = name or (Path(extractor).name if isinstance(extractor, str | Path) else type(extractor).__name__)
        self.num_frames, self.stride = num_frames, stride or num_frames
        self.reset()

    def reset(self) -> None:
        self._video = _Windows(self.extractor, self.num_frames, self.stride)
        self._reference = _Windows(self.extractor, self.num_frames, self.stride)

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        check_video(video)
        self._video.update(video)
        if reference is not None:
            self.update_reference(reference)

    def update_reference(self, reference: Tensor) -> None:
        """Take the next chunk of the current reference clip, [t 3 h w] in [-1, 1]."""
        check_video(reference)
        self._reference.update(reference)

    def end_clip(self) -> None:
        self._video.end_clip()
        self._reference.end_clip()

    def compute(self) -> dict[str, float]:
        a, b = self._video.gaussian, self._reference.gaussian
        if min(a.count, b.count) < 2:
            return {}
        distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
        return {"frechet": distance, "frechet_clips": float(a.count), "frechet_reference_clips": float(b.count)}

    def protocol(self) -> dict[str, Any]:
        details = getattr(self.extractor, "protocol", dict)
        return {
            "extractor": self.name,
            **details(),
            "num_frames": self.num_frames,
            "stride": self.stride,
            "covariance": "unbiased",
        }


class _Windows:
    """Cuts a streamed clip into windows, at most one of them in memory, and gathers their features."""

    def __init__(self, extractor: Extractor, num_frames: int, stride: int) -> None:
        self.extractor, self.num_frames, self.stride = extractor, num_frames, stride
        self.gaussian = Gaussian()
        self.end_clip()

    def update(self, video: Tensor) -> None:
        for frame in video:
            if self._skip:
                self._skip -= 1
                continue
            self._frames.append(frame.detach().float().clamp(-1, 1))
            if len(self._frames) == self.num_frames:
                self._take()

    def end_clip(self) -> None:
        self._frames: list[Tensor] = []
        self._skip = 0

    def _take(self) -> None:
        with torch.no_grad():
            features = self.extractor(torch.stack(self._frames, dim=1)[None])  # of [1 3 t h w]
        self.gaussian.add(features.flatten(2).mean(2)[0] if features.ndim > 2 else features[0])
        self._skip = max(0, self.stride - self.num_frames)
        self._frames = self._frames[self.stride :]
