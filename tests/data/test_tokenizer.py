"""The tokenizer made from captions: loads as CLIP's, and takes any text."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from latentvid.data.tokenizer import SMALLEST_VOCABULARY, build_tokenizer
from latentvid.data.worlds import open_world

CAPTIONS = list(open_world("sky").caption_corpus(400))
BUILT = build_tokenizer(CAPTIONS)


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer(text, padding="max_length", truncation=True, max_length=24).input_ids
    return found


def test_it_loads_again_from_its_folder_and_gives_the_same_ids(tmp_path: Path) -> None:
    build_tokenizer(CAPTIONS, tmp_path / "tokenizer")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert loaded.model_max_length == 24
    for text in [*CAPTIONS[:50], "unseen Words, 42 and 日本語 🌅", ""]:
        assert ids(loaded, text) == ids(BUILT, text)


def test_the_plain_vocab_and_merges_files_are_enough(tmp_path: Path) -> None:
    build_tokenizer(CAPTIONS, tmp_path)
    for name in ("tokenizer.json",):
        (tmp_path / name).unlink()
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert ids(loaded, CAPTIONS[0]) == ids(BUILT, CAPTIONS[0])


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert build_tokenizer(reversed(CAPTIONS)).get_vocab() == BUILT.get_vocab()


def test_words_of_the_world_are_one_token_each_and_every_caption_fits() -> None:
    words = set(itertools.chain.from_iterable(c.replace(",", "").split() for c in CAPTIONS))
    for word in words:
        assert len(BUILT(word, add_special_tokens=False).input_ids) == 1, word
    assert max(len(BUILT(c).input_ids) for c in CAPTIONS) <= 24
    assert len(BUILT) <= 1024


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_becomes_ids_in_range_and_length(text: str) -> None:
    found = ids(BUILT, text)
    assert len(found) == 24
    assert found[0] == BUILT.bos_token_id
    assert all(0 <= i < len(BUILT) for i in found)


@pytest.mark.parametrize("text", ["a clear sky over the sea", "naïve zebra 7", "日本"])
def test_decoding_gives_the_text_back(text: str) -> None:
    assert BUILT.decode(BUILT(text).input_ids, skip_special_tokens=True) == text


def test_unknown_words_are_not_swallowed() -> None:
    assert ids(BUILT, "zebra") != ids(BUILT, "yacht")
    assert BUILT.unk_token_id not in BUILT("zebra 日本", add_special_tokens=False).input_ids


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=str(SMALLEST_VOCABULARY)):
        build_tokenizer(CAPTIONS, vocab_size=100)
    with pytest.raises(ValueError, match="max_length"):
        build_tokenizer(CAPTIONS, max_length=2)
