"""The temporally finetuned decoder: causal temporal layers after every block of an image autoencoder's decoder.

Finetuning the decoder in time with the encoder frozen is from "Align your Latents" (arXiv 2304.08818); the layers
follow VidRD ("Reuse and Diffuse", arXiv 2309.03549), made causal so that films decode in chunks of any length. At
initialisation the network equals the image autoencoder frame by frame; the first frame of a film, and with it every
still, is decoded by the image network alone for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import save_file
from torch import Tensor, nn

from latentvid.autoencoders.image import ImageAutoencoder, build_image_network
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import atomic_path, write_json
from latentvid.temporal.context import ClipContext, StreamState
from latentvid.temporal.convolution import TemporalConvolution
from latentvid.temporal.inject import inject, is_temporal, temporal_parameters

DELTA_CLASS = "TemporalAutoencoderDelta"
DELTA_WEIGHTS = "temporal.safetensors"


class TemporalAutoencoder(ImageAutoencoder, ModelMixin, ConfigMixin):
    """An image autoencoder whose decoder sees time.

    Weights are saved under the image network's own names; those with `.temporal.` in them are new. Use `from_image`,
    `from_pretrained` or `latentvid.autoencoders.load.load_autoencoder` to make one.

    Args:
        image_autoencoder: the image network's config, `_class_name` included.
        temporal_num_convs: convolutions per temporal branch; each looks two frames back.
        temporal_dropout: inside the branches, in training.
        image_weights_hash: of the image network that this one was grown from, where it is known.
    """

    config_name = "config.json"
    context: ClipContext
    _supports_gradient_checkpointing = False  # recomputing a causal layer would advance its past twice

    @register_to_config
    def __init__(
        self,
        image_autoencoder: Mapping[str, Any],
        temporal_num_convs: int = 2,
        temporal_dropout: float = 0.0,
        image_weights_hash: str | None = None,
    ) -> None:
        super().__init__(build_image_network(image_autoencoder))
        self.context = ClipContext()

        def layer(channels: int, name: str, *, normalize: bool = True) -> nn.Module:
            return TemporalConvolution(
                channels,
                self.context,
                name,
                num_convs=temporal_num_convs,
                normalize=normalize,
                causal=True,
                dropout=temporal_dropout,
            )

        inject(self.decoder, {ResnetBlock2D: layer, AutoencoderTinyBlock: partial(layer, normalize=False)})

    @classmethod
    def from_image(cls, image: nn.Module | ImageAutoencoder, **temporal: Any) -> TemporalAutoencoder:
        """Grow one from an image autoencoder; its weights are copied, the new layers start at zero.

        Args:
            image: a diffusers `AutoencoderKL` or `AutoencoderTiny`, or one wrapped already.
            temporal: `temporal_num_convs`, `temporal_dropout`.
        """
        source = image if isinstance(image, ImageAutoencoder) else ImageAutoencoder(image)
        if isinstance(source, TemporalAutoencoder):
            raise UsageError("this autoencoder has temporal layers already; finetune it as it is.")
        grown = cls(source.image_config, image_weights_hash=source.image_weights(), **temporal)
        missing, unexpected = grown.load_state_dict(source.state_dict(), strict=False)
        assert not unexpected
        assert all(is_temporal(key) for key in missing)
        grown.name, grown.max_memory = source.name, source.max_memory
        nn.Module.to(grown, source.device, source.dtype)  # ModelMixin.to warns of casts that it need not fear
        return grown.train(image.training)

    @property
    def num_temporal_parameters(self) -> int:
        return sum(p.numel() for p in temporal_parameters(self).values())

    @property
    def has_delta(self) -> bool:
        """Whether the temporal layers alone make it out of the image autoencoder that it was grown from."""
        return self.config.image_weights_hash == self.image_weights()

    def without_time(self) -> ImageAutoencoder:
        """Return a copy without its temporal layers, on the same device, for inference."""
        image = ImageAutoencoder(build_image_network(self.image_config))
        image.load_state_dict({k: v for k, v in self.state_dict().items() if not is_temporal(k)})
        image.name, image.max_memory = self.name, self.max_memory
        return image.to(self.device, self.dtype).requires_grad_(False).eval()

    def freeze_image(self) -> None:
        """Leave nothing but the temporal layers trainable."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_temporal(name))

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
        **options: Any,
    ) -> None:
        """Write a folder that `from_pretrained` reads back bit by bit.

        The options are those of diffusers; a pipeline that is saved hands on the ones that are named here.
        """
        options |= {"variant": variant, "safe_serialization": safe_serialization, "max_shard_size": max_shard_size}
        ModelMixin.save_pretrained(self, folder, **options)

    def save_with_delta(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads, the temporal layers alone in `delta/` where they are enough."""
        self.save_pretrained(folder)
        if self.has_delta:
            self.save_delta(Path(folder) / "delta")

    def save_delta(self, folder: str | Path) -> None:
        """Write the temporal layers alone, with the hash of the image autoencoder that they belong to.

        Raises:
            UsageError: the image network's own weights were trained too, or nobody knows what they were before, so
                that the layers alone are not the model.
        """
        if not self.has_delta:
            raise UsageError(
                f"{folder}: the spatial weights were changed as well, or are of unknown origin, so a delta would not "
                "be the model; save the whole of it."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in temporal_parameters(self).items()}
        with atomic_path(folder / DELTA_WEIGHTS) as beside:
            save_file(weights, beside, {"format": "pt"})
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        about = {"_class_name": DELTA_CLASS, **config, "image_name": self.name}
        write_json(folder / self.config_name, about)

    def load_temporal(self, weights: Mapping[str, Tensor]) -> None:
        """Take over temporal layers, all of them.

        Raises:
            CheckpointError: names or shapes differ.
        """
        own = temporal_parameters(self)
        wrong = sorted(own.keys() ^ weights.keys()) + [
            name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape
        ]
        if wrong:
            raise CheckpointError(f"these temporal layers belong to another network: {wrong[0]} does not fit.")
        for name, parameter in own.items():
            parameter.data.copy_(weights[name])

    def _decode_frames(self, raw: Tensor, num_frames: int, state: StreamState | None) -> Tensor:
        with self.context.clip(num_frames, state):
            return self.image.decode(raw).sample
