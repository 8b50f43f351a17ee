"""The hand-over from a clip to its continuation: what the autoencoder loses of the last frame goes gradually.

A model's frames lack what its autoencoder and its size cannot hold, so the picture would turn soft from one frame to
the next. The difference between the clip's last frame and what the model sees of it is added to the new frames, less
and less. No pixel of the clip itself changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentvid.core.errors import CheckpointError
from latentvid.core.files import atomic_path
from latentvid.video.pixels import resize

_NAME = "difference"


@dataclass(frozen=True)
class HandOver:
    """Frames at the clip's size to which the difference is added.

    Args:
        difference: the clip's last frame less the model's version of it, [3 h w], in units of [-1, 1].
        num_frames: new frames after which nothing is left of it.
    """

    difference: Tensor
    num_frames: int

    @classmethod
    def between(cls, clip: Tensor, model: Tensor, num_frames: int) -> HandOver:
        """Compare the clip's last frame with the model's, which may have another size; both [3 h w] in [-1, 1]."""
        seen = resize(model[None].cpu().float(), *clip.shape[-2:])[0]
        return cls((clip - seen).to(torch.float16), num_frames)

    def __call__(self, frame: Tensor, number: int) -> Tensor:
        """Return the film's new frame [3 h w] of that number, from 1, with its share of the difference.

        Number 0 is the clip's own last frame.
        """
        share = 1 - number / (self.num_frames + 1)
        return frame if share <= 0 else (frame + share * self.difference.to(frame)).clamp(-1, 1)

    def save(self, path: Path) -> None:
        with atomic_path(path) as beside:
            save_file({_NAME: self.difference.contiguous()}, beside, {"num_frames": str(self.num_frames)})

    @classmethod
    def load(cls, path: Path, num_frames: int) -> HandOver:
        """Read the difference back, for another number of frames perhaps.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            return cls(load_file(path)[_NAME], num_frames)
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error}); extend the clip anew.") from error
