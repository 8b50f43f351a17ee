"""Showing frames that are to be made the frames that are given: what stands still is copied, what moves goes on.

A network with a noise level per frame (arXiv 2407.01392) is told by its levels which frames are given, but what these
hold reaches the others through convolutions over three frames and through attention at coarse resolutions only, so that
a window that continues another is redrawn rather than continued. Networks that take the given frame as extra channels
(SEINE, arXiv 2310.20700; Stable Video Diffusion) have it at hand at every place. This layer gives the same to any
number of given frames, on either side, without new inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentvid.temporal.context import ClipContext


class GivenFrames(nn.Module):
    """x + what the nearest given frames say, on [b*t c h w]; zero at initialisation.

    Frames whose noise level lies below the clip's highest are given. To each other frame the layer adds a linear map of
    the nearest given frame before it, of that frame times its distance, and of the change from its predecessor to it
    times the distance, which carries a motion on to first order; and the same of the frames behind it. Given frames
    and clips of one level pass unchanged.

    Args:
        channels: width c of the stream.
        context: tells t and the levels; shared by all layers of one network.
    """

    def __init__(self, channels: int, context: ClipContext) -> None:
        super().__init__()
        self.context = context
        self.mix = nn.Conv2d(6 * channels, channels, 1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        frames, levels = self.context.num_frames, self.context.levels
        if frames == 1 or levels is None:
            return x
        given = levels < levels.amax(dim=1, keepdim=True)
        clips = x.unflatten(0, (-1, frames))
        behind = (part.flip(1) for part in _carried_on(clips.flip(1), given.flip(1)))
        seen = torch.cat([*_carried_on(clips, given), *behind], dim=2)
        return x + self.mix(seen.flatten(0, 1))


def _carried_on(clips: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for every frame of [b t c h w], the nearest given frame before it, that times its distance (of which the
    whole clip is 1), and its last change times the distance; zeros where none is, and in given frames themselves.

    Args:
        given: which frames are, [b t].
    """
    frames = clips.shape[1]
    places = torch.arange(frames, device=clips.device)
    nearest = torch.where(given, places, -1).cummax(dim=1).values
    is_seen = ((nearest >= 0) & ~given).to(clips.dtype)
    at, before = nearest.clamp_min(0), (nearest - 1).clamp_min(0)
    distance = is_seen * (places - nearest).to(clips.dtype) / frames
    frame, earlier = _picked(clips, at), _picked(clips, before)
    changed = distance * given.gather(1, before).to(clips.dtype)  # a lone given frame tells of no change
    is_seen, distance, changed = (weight[:, :, None, None, None] for weight in (is_seen, distance, changed))
    return frame * is_seen, frame * distance, (frame - earlier) * (changed * frames)


def _picked(clips: Tensor, places: Tensor) -> Tensor:
    """Return the frames of [b t c h w] at `places` [b t]."""
    return clips.gather(1, places[:, :, None, None, None].expand(-1, -1, *clips.shape[2:]))
