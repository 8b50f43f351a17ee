"""Latent-space video: encode, generate, extend, and finetune the decoder, on one GPU or a laptop.

The public names are imported on first use, so that `import latentvid` (and with it `latentvid --help`) loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentvid.autoencoders.temporal import TemporalAutoencoder
    from latentvid.denoisers.temporal_unet import TemporalUNet
    from latentvid.finetuning.result import finetune_decoder
    from latentvid.pipeline import LatentVideoPipeline
    from latentvid.video.reader import open_video

__version__ = "0.1.0"
__all__ = ["LatentVideoPipeline", "TemporalAutoencoder", "TemporalUNet", "finetune_decoder", "open_video"]

_HOMES = {
    "LatentVideoPipeline": "latentvid.pipeline",
    "TemporalAutoencoder": "latentvid.autoencoders.temporal",
    "TemporalUNet": "latentvid.denoisers.temporal_unet",
    "finetune_decoder": "latentvid.finetuning.result",
    "open_video": "latentvid.video.reader",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'latentvid' has no attribute {name!r}")
