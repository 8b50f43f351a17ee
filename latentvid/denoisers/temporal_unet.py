"""The temporal U-Net: diffusers' `UNet2DConditionModel` with convolution and attention across frames.

Block order per stage as in VidRD ("Reuse and Diffuse", arXiv 2309.03549): resnet, temporal convolution,
spatial transformer, temporal attention. At initialisation it equals the image network frame by frame, and a
clip of one frame always passes through the image network alone, which is what joint training on images and
videos (PYoCo, arXiv 2305.10474) rests on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentvid.temporal.advection import TextMotion
from latentvid.temporal.attention import TemporalAttention
from latentvid.temporal.context import ClipContext
from latentvid.temporal.convolution import TemporalConvolution
from latentvid.temporal.given import GivenFrames
from latentvid.temporal.inject import CHILD, attach, inject, is_temporal

TEMPORAL_KEYS = (
    "temporal_num_convs",
    "temporal_num_heads",
    "temporal_dropout",
    "temporal_advection",
    "temporal_given_frames",
)


class TemporalUNet(UNet2DConditionModel):
    """A denoiser of clips: [b c t h w] in, [b c t h w] out.

    Takes every argument of `UNet2DConditionModel`, and:

    Args:
        temporal_num_convs: convolutions per temporal branch (VidRD: 4).
        temporal_num_heads: heads of the temporal attention.
        temporal_dropout: inside the temporal convolutions, in training.
        temporal_advection: let the text move the features of neighbouring frames (`temporal.advection`).
        temporal_given_frames: show frames that are to be made those that are given (`temporal.given`).
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        temporal_num_convs: int = 2,
        temporal_num_heads: int = 4,
        temporal_dropout: float = 0.0,
        temporal_advection: bool = False,
        temporal_given_frames: bool = False,
        **image_config: Any,
    ) -> None:
        super().__init__(**image_config)  # registers its own arguments as config
        self.register_to_config(
            temporal_num_convs=temporal_num_convs,
            temporal_num_heads=temporal_num_heads,
            temporal_dropout=temporal_dropout,
            temporal_advection=temporal_advection,
            temporal_given_frames=temporal_given_frames,
        )
        self.context = ClipContext()
        text_width = self.config.cross_attention_dim
        inject(
            self,
            {
                ResnetBlock2D: lambda channels, name: TemporalConvolution(
                    channels,
                    self.context,
                    name,
                    num_convs=temporal_num_convs,
                    causal=False,
                    dropout=temporal_dropout,
                    motion_width=text_width if temporal_advection else 0,
                ),
                Transformer2DModel: lambda channels, _: TemporalAttention(
                    channels, self.context, num_heads=temporal_num_heads
                ),
            },
        )
        if temporal_advection:
            self.add_module(CHILD, TextMotion(text_width))
        if temporal_given_frames:
            attach(self.conv_in, GivenFrames(self.conv_in.out_channels, self.context))

    @property
    def text_motion(self) -> TextMotion | None:
        """What pools the text for the temporal layers, where they listen to it."""
        return getattr(self, CHILD, None)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # diffusers reads the accepted config keys off __init__; **image_config stands for the image network's.
        keys = set(inspect.signature(UNet2DConditionModel.__init__).parameters) | set(TEMPORAL_KEYS)
        return keys | set(inspect.signature(input_class).parameters) - {"image_config"}

    @classmethod
    def from_image(cls, image: UNet2DConditionModel, **temporal: Any) -> TemporalUNet:
        """Grow a temporal U-Net from an image U-Net, or one with more layers from one with fewer.

        Its weights are copied, the new layers start at zero.
        """
        config = {k: v for k, v in image.config.items() if not k.startswith("_")}
        grown = cls(**{**config, **temporal})
        missing, unexpected = grown.load_state_dict(image.state_dict(), strict=False)
        assert not unexpected
        assert all(is_temporal(key) for key in missing)
        return grown.to(image.device, image.dtype).train(image.training)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, the same gradients, more time.

        Args:
            gradient_checkpointing_func: (module, *inputs) -> outputs, in place of `torch.utils.checkpoint`.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or self._checkpointed)

    def _checkpointed(self, module: nn.Module, *inputs: Any) -> Any:
        # The backward pass runs after `forward` has left its clip, so the clip is set again for the recomputation.
        return checkpoint(self.context.bound(module), *inputs, use_reentrant=False)

    def forward(self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Predict for noisy clips.

        Args:
            sample: [b c t h w].
            timestep: a scalar, [b], or [b t] (a level per frame).
            encoder_hidden_states: text, [b l d] for the whole clip or [b t l d] per frame.

        Returns:
            The raw prediction, [b c t h w].
        """
        batch, _, frames = sample.shape[:3]
        timestep = torch.as_tensor(timestep, device=sample.device)
        if timestep.ndim < 2:
            timestep = timestep.reshape(-1, 1)
        levels = timestep.expand(batch, frames)
        if encoder_hidden_states.ndim == 3:
            encoder_hidden_states = encoder_hidden_states[:, None].expand(-1, frames, -1, -1)
        text = encoder_hidden_states.flatten(0, 1)
        flat = rearrange(sample, "b c t h w -> (b t) c h w")
        motion = None if self.text_motion is None or frames == 1 else self.text_motion(text)
        with self.context.clip(frames, motion=motion, levels=levels):
            out = super().forward(flat, levels.reshape(-1), text, return_dict=False, **kwargs)[0]
        return rearrange(out, "(b t) c h w -> b c t h w", t=frames)
