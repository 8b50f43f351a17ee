"""Prompts to embeddings: a CLIP tokenizer and text encoder, as in every Stable Diffusion folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.core.errors import CheckpointError


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Return token ids, int64 [b l], padded or cut to the tokenizer's length."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def embed(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> Tensor:
    """Return the last hidden states of `prompts`, [b l d].

    Raises:
        CheckpointError: they are no numbers.
    """
    with torch.no_grad():
        found = text_encoder(tokenize(tokenizer, prompts).to(text_encoder.device)).last_hidden_state
    if not torch.isfinite(found).all():
        raise CheckpointError(
            "the text encoder gave values that are no numbers: it overflows, or its weights are damaged; try --dtype "
            "fp32."
        )
    return found


def cross_fade(before: Tensor, after: Tensor, num_frames: int) -> Tensor:
    """Lead from one embedding [b l d] to another over a window: [b t l d], the last frame all `after`."""
    weights = torch.linspace(0, 1, num_frames + 1, device=after.device)[1:].to(after).view(1, -1, 1, 1)
    return torch.lerp(before[:, None], after[:, None], weights)
