"""A residual branch of convolutions across frames, zero at initialisation.

The block order [GroupNorm, SiLU, convolution (3, 1, 1)] repeated with a zero last convolution is that of
ModelScope's and VidRD's temporal layers ("Reuse and Diffuse", arXiv 2309.03549). Two things differ on purpose:
GroupNorm works per frame, so that neither the frame count nor the chunking enters the statistics, and the
causal form carries its past, so that decoding a film in chunks equals decoding it whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentvid.temporal.advection import Advection
from latentvid.temporal.context import ClipContext

KERNEL = 3


def num_groups(channels: int, most: int = 32) -> int:
    """Return the largest divisor of `channels` that is at most `most` and leaves groups of two or more."""
    return max(g for g in range(1, most + 1) if channels % g == 0 and (channels // g > 1 or g == 1))


def _across_frames(plane: Tensor, kernel: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolve [b c t p], frames high and pixels wide, with [o c 3 1]."""
    return F.conv2d(plane, kernel, bias, padding=(padding, 0))


class _AcrossFrames(torch.autograd.Function):
    """`_across_frames`, with the kernel's gradient as three products of matrices.

    Torch's own is slow in float32 on a CPU (training at 512 channels took longer by it than with stacked frames), and
    there is none for a view on small planes.
    """

    @staticmethod
    def forward(ctx: Any, plane: Tensor, kernel: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        kind = plane.device.type
        if torch.is_autocast_enabled(kind):  # here, so that what is kept for the gradient is cast too
            plane, kernel = (x.to(torch.get_autocast_dtype(kind)) for x in (plane, kernel))
            bias = bias.to(kernel.dtype) if bias is not None else None
        ctx.save_for_backward(plane, kernel)
        ctx.padding = padding
        return _across_frames(plane, kernel, bias, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        plane, kernel = ctx.saved_tensors
        of_plane = of_kernel = of_bias = None
        if ctx.needs_input_grad[0]:
            plain = ((1, 1), (ctx.padding, 0), (1, 1), False, (0, 0), 1, (True, False, False))
            of_plane = torch.ops.aten.convolution_backward(gradient, plane, kernel, None, *plain)[0]
        if ctx.needs_input_grad[1]:
            out, came = gradient.permute(0, 2, 3, 1), plane.permute(0, 2, 3, 1)  # [b t p c]
            taps = []
            for ahead in range(-ctx.padding, KERNEL - ctx.padding):
                first, end = max(0, -ahead), min(out.shape[1], came.shape[1] - ahead)
                y, x = out[:, first:end].flatten(0, 2), came[:, first + ahead : end + ahead].flatten(0, 2)
                taps.append(y.t() @ x)
            of_kernel = torch.stack(taps, dim=2).unsqueeze(-1)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_plane, of_kernel, of_bias, None


class TemporalConvolution(nn.Module):
    """x + branch(x) on [b*t c h w], the branch mixing three neighbouring frames per convolution.

    Args:
        channels: width c of the stream.
        context: tells t and carries the past; shared by all layers of one network.
        name: key of this layer's past in a `StreamState`.
        num_convs: convolutions in the branch; each causal one looks two frames back.
        normalize: GroupNorm before every convolution; not in networks that have no normalisation themselves, whose
            features are far from unit scale, so that a normalised branch would drown them at the first steps.
        causal: look back only (streaming decoders), or one frame either way (networks that see whole windows).
        dropout: before every convolution but the first.
        motion_width: width of the text embedding that moves the neighbouring frames' features (see `Advection`); 0
            moves nothing.

    A causal layer leaves a film's first frame untouched: a frame without a past is an image. A centred one
    leaves clips of one frame untouched.
    """

    def __init__(
        self,
        channels: int,
        context: ClipContext,
        name: str,
        *,
        num_convs: int = 2,
        normalize: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
        motion_width: int = 0,
    ) -> None:
        super().__init__()
        self.context = context
        self.name = name
        self.causal = causal
        norm = (lambda: nn.GroupNorm(num_groups(channels), channels)) if normalize else nn.Identity
        self.norms = nn.ModuleList(norm() for _ in range(num_convs))
        # The weights of (3, 1, 1) convolutions, as those of 1x1 convolutions over three stacked frames, oldest first.
        self.convs = nn.ModuleList(nn.Conv2d(KERNEL * channels, channels, 1) for _ in range(num_convs))
        self.advections = nn.ModuleList(
            Advection(KERNEL * channels, motion_width) for _ in range(num_convs if motion_width else 0)
        )
        self.dropout = nn.Dropout(dropout)
        for parameter in self.convs[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        frames, state = self.context.num_frames, self.context.state
        if frames == 1 and (state is None or not self.causal):
            return x
        branch = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            branch = F.silu(norm(branch))
            if i:
                branch = self.dropout(branch)
            key = f"{self.name}.{i}"
            if self.advections and self.context.motion is not None:
                branch = conv(self.advections[i](self._stack(branch, frames, key), self.context.motion))
            else:
                branch = self._convolve(branch, frames, key, conv)
        if self.causal and (state is None or state.num_frames_seen == 0):
            has_past = torch.ones(frames, device=x.device, dtype=branch.dtype)
            has_past[0] = 0
            return torch.addcmul(x, branch, has_past.repeat(len(branch) // frames).view(-1, 1, 1, 1))
        return x + branch

    def _convolve(self, x: Tensor, frames: int, key: str, conv: nn.Module) -> Tensor:
        """Convolve [b*t c h w] across frames, as a plane that is t frames high and h*w pixels wide, channels last.

        Libraries have a fast kernel for that; one over three stacked frames moves three times the memory
        (`scripts/bench_temporal_convolution.py`).
        """
        assert isinstance(conv, nn.Conv2d)
        height = x.shape[-2]
        clip = rearrange(x, "(b t) c h w -> b t h w c", t=frames)
        padded = self._with_past(clip, key, channels=-1) if self.causal else clip
        plane = padded.flatten(2, 3).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)  # [b c t h*w]
        kernel = conv.weight.view(conv.out_channels, KERNEL, -1).transpose(1, 2).unsqueeze(-1)  # [c c 3 1], a view
        padding = 0 if self.causal else KERNEL // 2
        convolve = _AcrossFrames.apply if kernel.requires_grad else _across_frames
        out = convolve(plane, kernel, conv.bias, padding)
        out = rearrange(out, "b c t (h w) -> (b t) c h w", h=height)
        # As it came, or every layer after this one would turn it round again.
        return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()

    def _stack(self, x: Tensor, frames: int, key: str) -> Tensor:
        """Lay every frame of [b*t c h w] beside those that its convolution sees, [b*t 3c h w]."""
        clip = x.unflatten(0, (-1, frames))
        padded = self._with_past(clip, key, channels=2) if self.causal else F.pad(clip, (0, 0) * 3 + (1, 1))
        return torch.cat([padded[:, k : k + frames] for k in range(KERNEL)], dim=2).flatten(0, 1)

    def _with_past(self, x: Tensor, key: str, channels: int) -> Tensor:
        """Put the two frames before [b t ...] in front of it, and note its own last two."""
        state = self.context.state
        past = state.tensors.get(key) if state is not None else None
        past = x[:, :1].expand(-1, KERNEL - 1, -1, -1, -1) if past is None else past.to(x).movedim(2, channels)
        padded = torch.cat([past.contiguous(), x], dim=1)
        if state is not None:
            # A copy, not a view: a view would keep the whole chunk alive.
            state.tensors[key] = padded[:, 1 - KERNEL :].movedim(channels, 2).clone()
        return padded
