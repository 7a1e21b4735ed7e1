"""Texts as tokens: GPT-2's byte pairs, in lower case, padded on the right."""

from pathlib import Path

import pytest
import torch

from fewstep.errors import DataError, UsageError
from fewstep.interop.tokens import Tokenizer, nothing

tokenizers = pytest.importorskip("tokenizers")

MERGES = ["#version: 0.2", "h e", "l l", "he ll", "hell o", "\u0120 w", "\u0120w o"]
VOCAB = 256 + len(MERGES)  # a header less, the end of text more


@pytest.fixture
def table(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "vocab.bpe"
    path.write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    return Tokenizer.read(path, VOCAB)


def test_the_numbers_are_those_of_gpt2(table: Tokenizer) -> None:
    """Bytes are numbered 33..126 first, so "!" is 0 and "a" 64; merges follow the 256 bytes."""
    caption = table.captions(["a!", "hello wo", "HELLO", ""], 6)
    end = VOCAB - 1
    assert caption.tokens.tolist() == [
        [64, 0, end, end, end, end],
        [259, 261, end, end, end, end],
        [259, end, end, end, end, end],
        [end] * 6,
    ]
    assert caption.mask.sum(1).tolist() == [2, 2, 1, 0]
    assert caption.tokens.dtype == torch.int64


def test_long_texts_lose_their_end_and_bytes_come_through(table: Tokenizer) -> None:
    caption = table.captions(["!" * 50, "\u00e9"], 4)
    assert caption.mask.sum(1).tolist() == [4, 2]
    assert caption.tokens.shape == (2, 4)


def test_both_files_are_one_table(table: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(table.text(), encoding="utf-8")
    again = Tokenizer.read(path, VOCAB)
    texts = ["hello world, it is a red boat", "\u4e16\u754c"]
    assert torch.equal(again.captions(texts, 40).tokens, table.captions(texts, 40).tokens)


def test_files_that_are_no_table(table: Tokenizer, tmp_path: Path) -> None:
    del table
    with pytest.raises(UsageError, match="no such file"):
        Tokenizer.read(tmp_path / "nowhere.json", VOCAB)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer"):
        Tokenizer.read(tmp_path / "bad.json", VOCAB)
    with pytest.raises(DataError, match="the network knows 50257"):
        Tokenizer.read(tmp_path / "vocab.bpe", 50257)


def test_nothing_is_all_padding() -> None:
    caption = nothing(3, 5)
    assert caption.tokens.shape == caption.mask.shape == (3, 5)
    assert not caption.mask.any()
