"""Prompts to embeddings: a CLIP tokenizer and text encoder, as in every Stable Diffusion folder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.core.errors import UsageError

_SHOWN = 200
"""Characters of a left out text that a warning quotes."""


def text_length(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> int:
    """Return how many tokens a prompt may have, start and end included: the smaller of what both take.

    Tokenizers whose files do not name a length say one without end.
    """
    return int(min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings))


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int | None = None) -> Tensor:
    """Return token ids, int64 [b l], padded or cut to `length`, by default the tokenizer's own."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length if length is None else length,
        return_tensors="pt",
    ).input_ids


def left_out(tokenizer: CLIPTokenizer, prompt: str, length: int) -> str:
    """Return the end of a prompt that `tokenize` cuts off; "" where all of it is taken.

    Raises:
        UsageError: the prompt is no text, but undecodable bytes from the command line, say.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the prompt {prompt[:_SHOWN]!a} holds characters that are no text ({error.reason})."
        ) from error
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) <= length:
        return ""
    if not tokenizer.is_fast:  # one without places: its own spelling of the tokens has to do
        return str(tokenizer.decode(ids[length - 1 : -1])).strip()
    places = tokenizer(prompt, truncation=False, verbose=False, return_offsets_mapping=True).offset_mapping
    return prompt[places[length - 1][0] :].strip()


def warn_of_long_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Iterable[tuple[str, str]]
) -> None:
    """Warn of each prompt that is longer than the text encoder takes, naming what is left out of it.

    Args:
        prompts: (what it is, its text), such as ("negative prompt", "blurred"); equal texts are told once.

    Raises:
        UsageError: a prompt is no text.
    """
    length, told = text_length(tokenizer, text_encoder), set[str]()
    for name, prompt in prompts:
        rest = "" if prompt in told else left_out(tokenizer, prompt, length)
        told.add(prompt)
        if rest:
            shown = rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]}..."
            _warn(
                f"the {name} is longer than the {length} tokens that the text encoder takes (start and end included);"
                f" left out: {shown!r}"
            )


def warn_of_long_captions(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, captions: Iterable[str]) -> None:
    """Warn, in one sentence, of the captions that are longer than the text encoder takes."""
    length, distinct = text_length(tokenizer, text_encoder), dict.fromkeys(captions)
    rests = {caption: rest for caption in distinct if (rest := left_out(tokenizer, caption, length))}
    if rests:
        longest = max(rests, key=len)
        _warn(
            f"{len(rests)} of {len(distinct)} captions are longer than the {length} tokens that the text encoder takes"
            f" (start and end included) and are cut there; of the longest is left out: {rests[longest][:_SHOWN]!r}"
        )


def _warn(text: str) -> None:
    """Warn each time: Python tells equal texts from one place only once, and the next film is another matter."""
    warnings.warn_explicit(text, UserWarning, __file__, sys._getframe().f_lineno, module=__name__)


def embed(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> Tensor:
    """Return the last hidden states of `prompts`, [b l d], cut where they are longer than the encoder takes."""
    ids = tokenize(tokenizer, prompts, text_length(tokenizer, text_encoder))
    with torch.no_grad():
        return text_encoder(ids.to(text_encoder.device)).last_hidden_state


def cross_fade(before: Tensor, after: Tensor, num_frames: int) -> Tensor:
    """Lead from one embedding [b l d] to another over a window: [b t l d], the last frame all `after`."""
    weights = torch.linspace(0, 1, num_frames + 1, device=after.device)[1:].to(after).view(1, -1, 1, 1)
    return torch.lerp(before[:, None], after[:, None], weights)
