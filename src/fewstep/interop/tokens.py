"""Turn a text into the tokens that GLIDE's networks read.

The byte-pair encoding is GPT-2's, in lower case, padded on the right; its table is a file of the
user's (`tokenizer.json`, or the merges alone, `vocab.bpe`). The reading itself is done by the
library `tokenizers` (pip install "fewstep[text]").

Inside: `Tokenizer`; `nothing`, the empty caption.

Source: Nichol et al., GLIDE, 2021, and the repository openai/glide-text2im (no code); Radford et
al., Language Models are Unsupervised Multitask Learners, 2019, section 2.2.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewstep.conditions import Caption
from fewstep.errors import DataError, UsageError

if TYPE_CHECKING:
    import tokenizers

NAME = "tokenizer.json"
"""The file's name in a model's folder."""
END = "<|endoftext|>"


class Tokenizer:
    """Read texts with a table of byte-pair encoding.

    Args:
        table: of the library `tokenizers`.
    """

    def __init__(self, table: "tokenizers.Tokenizer") -> None:
        self._table = table

    @classmethod
    def read(cls, path: Path, vocab: int) -> "Tokenizer":
        """Open a table.

        Args:
            path: a tokenizer.json, or a list of merges (vocab.bpe, merges.txt).
            vocab: number of tokens that the network knows.

        Raises:
            UsageError: no such file, or the library is not installed.
            DataError: no table, or one of another number of tokens.
        """
        try:
            import tokenizers
        except ImportError:
            raise UsageError(
                'texts need the library tokenizers: pip install "fewstep[text]"'
            ) from None
        if not path.is_file():
            raise UsageError(f"{path}: no such file; give GPT-2's tokenizer.json or vocab.bpe")
        try:
            if path.suffix == ".json":
                table = tokenizers.Tokenizer.from_file(str(path))
            else:
                table = _of_merges(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise DataError(f"{path}: no tokenizer: {str(error).splitlines()[0]}") from error
        if table.get_vocab_size() != vocab:
            raise DataError(
                f"{path}: a table of {table.get_vocab_size()} tokens, the network knows {vocab}; "
                "GLIDE's is that of GPT-2"
            )
        return cls(table)

    def text(self) -> str:
        """Return the table as the text of a tokenizer.json."""
        return self._table.to_str()

    def captions(self, texts: list[str], context: int) -> Caption:
        """Return texts as tokens.

        Args:
            texts: B texts; an empty one is the null condition.
            context: tokens per caption; longer texts lose their end.

        Returns:
            tokens and mask, both (B, context).
        """
        end = self._table.token_to_id(END)
        pad = self._table.get_vocab_size() - 1 if end is None else end
        tokens = torch.full((len(texts), context), pad, dtype=torch.int64)
        mask = torch.zeros(len(texts), context, dtype=torch.bool)
        for row, text in enumerate(texts):
            found = self._table.encode(text.lower(), add_special_tokens=False).ids[:context]
            tokens[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
            mask[row, : len(found)] = True
        return Caption(tokens, mask)


def nothing(n: int, context: int) -> Caption:
    """Return n empty captions, the null condition: tokens and mask, both (n, context).

    Args:
        n: number of captions.
        context: tokens per caption.
    """
    mask = torch.zeros(n, context, dtype=torch.bool)
    return Caption(mask.long(), mask)


def _of_merges(text: str) -> "tokenizers.Tokenizer":
    """Build GPT-2's table of its merges: 256 bytes, one token a merge, the end of text."""
    from tokenizers import Tokenizer as Table
    from tokenizers import decoders, models, pre_tokenizers

    lines = [line for line in text.splitlines() if line and not line.startswith("#version")]
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines)]
    # GPT-2 numbers the printable bytes first, then the others: the order of its characters
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*bytes_, *(a + b for a, b in merges), END]
    table = Table(models.BPE({word: i for i, word in enumerate(words)}, merges))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    return table
