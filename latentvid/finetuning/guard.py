"""The image guard: a finetuned decoder may cost single frames no more than a tenth of a decibel.

Where training the spatial weights cost more, they are moved back towards the image decoder's, along the line between
the two ("Robust fine-tuning of zero-shot models", arXiv 2109.01903), as little as brings the stills back. With
temporal layers only, stills are those of the image decoder by construction; they are measured all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import InputError
from latentvid.training.decoder import GUARD_DB
from latentvid.video.pixels import frames_to_tensor
from latentvid.video.reader import AS_STATED, Reading

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the spatial weights' change, tried in this order."""
STILLS_PER_CLIP = 4
MOST_CLIPS = 16


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the guard found, and did."""

    psnr_before: float
    """Of held-out stills through the image decoder, dB."""
    psnr_trained: float
    """Through the decoder as it was trained."""
    psnr_kept: float
    """Through the decoder that was kept."""
    share: float
    """Of the spatial weights' change that was kept; 1 where the guard had nothing to do."""

    @property
    def holds(self) -> bool:
        return self.psnr_kept >= self.psnr_before - GUARD_DB

    def sentence(self) -> str:
        """Say how it went."""
        kept, trained = self.psnr_kept - self.psnr_before, self.psnr_trained - self.psnr_before
        if self.share == 1:
            return f"image guard: single frames {kept:+.2f} dB, within {GUARD_DB} dB of the image decoder."
        return (
            f"image guard: single frames had fallen by {-trained:.2f} dB, more than {GUARD_DB}; {self.share:.0%} of "
            f"the change of the spatial weights is kept, which leaves {kept:+.2f} dB."
        )


def guard_images(
    autoencoder: TemporalAutoencoder, image: ImageAutoencoder, clips: Sequence[Path], *, reading: Reading = AS_STATED
) -> Guarded:
    """Measure stills of `clips`, and move the spatial weights of `autoencoder` back until the guard holds.

    Args:
        autoencoder: finetuned; changed in place where it must be.
        image: the image autoencoder that it was grown from.
        clips: held-out files.
        reading: how they are opened.

    Raises:
        InputError: not one still can be read.
    """
    before = still_psnr(image, clips, reading)
    trained = kept = still_psnr(autoencoder, clips, reading)
    share = 1.0
    start = {k: v for k, v in image.state_dict().items() if v.is_floating_point()}
    change = {k: v.detach() - start[k] for k, v in autoencoder.state_dict().items() if k in start}
    for share in SHARES:
        if share != 1:
            with torch.no_grad():
                for name, value in autoencoder.state_dict().items():
                    if name in change:
                        value.copy_(start[name] + share * change[name])
            kept = still_psnr(autoencoder, clips, reading)
        if kept >= before - GUARD_DB:
            break
    return Guarded(before, trained, kept, share)


@torch.no_grad()
def still_psnr(autoencoder: ImageAutoencoder, clips: Sequence[Path], reading: Reading = AS_STATED) -> float:
    """Return the mean PSNR in dB of frames of `clips`, each encoded and decoded as a film of its own.

    Raises:
        InputError: not one can be read.
    """
    found = []
    for frame in _stills(clips, reading):
        decoded = next(autoencoder.decode(autoencoder.encode([frame]), size=(frame.shape[-2], frame.shape[-1])))
        error = (decoded.cpu() - frame) / 2
        found.append(-10 * float(error.square().mean().clamp(min=1e-10).log10()))
    if not found:
        raise InputError(f"{clips[0] if clips else 'no clip'}: no frame of the held-out clips can be read.")
    return sum(found) / len(found)


def _stills(clips: Sequence[Path], reading: Reading) -> Iterator[Tensor]:
    """Yield frames [1 3 h w] in [-1, 1], spread over each clip; files that break off give fewer."""
    for path in clips[:MOST_CLIPS]:
        try:
            with reading.open(path) as reader:
                num_frames = reader.meta.num_frames
                for k in range(min(STILLS_PER_CLIP, num_frames)):
                    at = (2 * k + 1) * num_frames // (2 * STILLS_PER_CLIP)
                    pictures = list(reader.frames(at, at + 1))
                    if pictures:
                        yield frames_to_tensor(pictures)
        except InputError:
            continue
