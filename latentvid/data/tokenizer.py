"""A small CLIP tokenizer made from a project's own captions: byte-level BPE, so that no text is beyond it.

The result is what every Stable Diffusion folder holds (Sennrich et al., arXiv 1508.07909; Radford et al.,
arXiv 2103.00020), only with fewer merges: all 256 bytes, inside a word and at its end, then what the texts merge.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"
_SUFFIX = "</w>"
SMALLEST_VOCABULARY = 2 * 256 + 2


def build_tokenizer(
    texts: Iterable[str], folder: str | Path | None = None, *, vocab_size: int = 1024, max_length: int = 24
) -> CLIPTokenizer:
    """Return a tokenizer whose merges were learned from `texts`, and save it into `folder` if one is given.

    Args:
        texts: captions; their order does not matter.
        folder: is made if missing; gets `tokenizer.json`, its config, and CLIP's `vocab.json` and `merges.txt`.
        vocab_size: the most entries, specials included; fewer where the texts give no more to merge.
        max_length: tokens per prompt, start and end included.

    Raises:
        ValueError: `vocab_size` does not hold all bytes, or `max_length` not even one token of text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size={vocab_size} must be at least {SMALLEST_VOCABULARY}, to hold every byte twice")
    if max_length < 3:
        raise ValueError(f"max_length={max_length} must be at least 3: start, a token, end")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(texts, alphabet, vocab_size)[: vocab_size - SMALLEST_VOCABULARY]
    entries = alphabet + [letter + _SUFFIX for letter in alphabet]
    entries += list(dict.fromkeys(left + right for left, right in merges))
    vocabulary = {entry: i for i, entry in enumerate([*dict.fromkeys(entries), _START, _END])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
    if folder is not None:
        save_tokenizer(tokenizer, folder)
    return tokenizer


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | Path) -> None:
    """Write a tokenizer so that old and new transformers can load it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def _learn_merges(texts: Iterable[str], alphabet: list[str], vocab_size: int) -> list[tuple[str, str]]:
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=_SUFFIX))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=_SUFFIX,
        show_progress=False,
    )
    # Ties between equally frequent pairs are broken by what was seen first, so the texts are put in order.
    learner.train_from_iterator(sorted(texts), trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
