"""What a recipe would train, without preparing data or allocating its networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel

from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.diffusion import choose_layers
from latentvid.training.recipes import AutoencoderRecipe, DecoderRecipe, DiffusionRecipe, Recipe, WordsRecipe


def summarize(recipe: Recipe) -> dict[str, Any]:
    """Return kind, steps, parameter counts (all, and trained) and the settings in full, as plain data.

    A text encoder that is still to be made is counted with the largest vocabulary that it may get.

    Raises:
        CheckpointError: an autoencoder or pipeline that the recipe starts from cannot be loaded.
    """
    networks = _networks(recipe)
    return {
        "kind": recipe.kind,
        "steps": recipe.loop.steps,
        "batches_per_step": recipe.loop.accumulate,
        "parameters": {name: _count(network) for name, network in networks.items()},
        "trained_parameters": sum(_count(network, trained=True) for network in networks.values()),
        "recipe": recipe.model_dump(mode="json"),
    }


def _networks(recipe: Recipe) -> dict[str, nn.Module]:
    """Return the networks by name, those that are not trained frozen."""
    if isinstance(recipe, AutoencoderRecipe):
        with torch.device("meta"):
            return {"vae": recipe.network.build(recipe.source.size)}
    if isinstance(recipe, DecoderRecipe):
        return {"vae": _decoder(recipe)}
    if isinstance(recipe, WordsRecipe):
        return _words(recipe)
    return _diffusion(recipe)


def _decoder(recipe: DecoderRecipe) -> nn.Module:
    vae = load_image_autoencoder(recipe.vae)
    if not isinstance(vae, TemporalAutoencoder):
        vae = TemporalAutoencoder.from_image(vae, temporal_num_convs=recipe.temporal_num_convs)
    vae.requires_grad_(True)
    if recipe.options.train_spatial:
        vae.freeze_encoder()
    else:
        vae.freeze_image()
    return vae


def _words(recipe: WordsRecipe) -> dict[str, nn.Module]:
    given = recipe.start()
    given.unet.requires_grad_(False)
    given.unet.text_motion.requires_grad_(True)
    return {"unet": given.unet, "text_encoder": given.text_encoder.requires_grad_(True)}


def _diffusion(recipe: DiffusionRecipe) -> dict[str, nn.Module]:
    vae = load_image_autoencoder(recipe.vae)
    if recipe.init is not None:
        given = LatentVideoPipeline.from_pretrained(recipe.init)
        unet, text_encoder = given.unet, given.text_encoder
    else:
        marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # whatever they will be, they count nothing
        with torch.device("meta"):
            unet = recipe.unet.build(vae.latent_channels, 1, recipe.text.width)  # no weight depends on the clips' size
            text_encoder = CLIPTextModel(recipe.text.config(recipe.text.vocab_size, **marks))
    choose_layers(unet, recipe.options)
    text_encoder.requires_grad_(recipe.options.train_text)
    return {"vae": vae.requires_grad_(False), "unet": unet, "text_encoder": text_encoder}


def _count(network: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)
