"""A CLIP tokenizer for a small closed world: byte-pair merges learned from its own captions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024, max_length: int = 24) -> CLIPTokenizer:
    """Learn a tokenizer from `texts`; any other text is spelled out in bytes, so that nothing is unknown.

    Args:
        texts: captions.
        vocab_size: most tokens, at least the 514 that bytes and the two marks need.
        max_length: tokens per prompt, marks included.
    """
    learner = CLIPTokenizer()
    learner.backend_tokenizer.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return _from_model(learner, max_length)


def _from_model(learner: CLIPTokenizer, max_length: int) -> CLIPTokenizer:
    """Rebuild from vocabulary and merges, with every byte also as the end of a word and the marks last, as CLIP has."""
    import json

    model = json.loads(learner.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(first + second for first, second in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Open a saved tokenizer; nothing is downloaded."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
