"""Text as a stream of tokens: documents one after the other, in splits that never mix."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt16
from platformdirs import user_cache_path

from experiments.data.tokenizer import Tokenizer
from retrieval.passages import Passages

Progress = Callable[[str, float], None]
"""Called with the name of the stage and the share of it that is done, 0 to 1."""


class CorpusError(ValueError):
    """A corpus that cannot be built or read; the message says what to do about it."""


@dataclass(frozen=True)
class Split:
    """One split of a corpus: documents one after the other, each beginning with token 0.

    Args:
        name: ``"train"``, ``"valid"``, ``"test"`` or ``"heldout"``.
        tokens: the stream, as a rule memory-mapped.
        offsets: document `j` is ``tokens[offsets[j]:offsets[j + 1]]``.
        answers: what each position is asked, -100 for nothing, where that is not the next token; ``None``: it is.
    """

    name: str
    tokens: UInt16[np.ndarray, " token"]
    offsets: Int[np.ndarray, " document_plus_one"]
    answers: Int[np.ndarray, " token"] | None = None

    def __len__(self) -> int:
        """The number of tokens, markers included."""
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        """The number of documents."""
        return len(self.offsets) - 1

    def document(self, index: int) -> UInt16[np.ndarray, " token"]:
        """The tokens of one document, its marker first."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def bytes_of(self, token_bytes: Int[np.ndarray, " vocab"]) -> int:
        """The bytes of text this split stands for (a marker stands for none)."""
        counts = np.bincount(self.tokens, minlength=len(token_bytes))
        return int(counts @ token_bytes)

    def passages(self, vocab_size: int) -> Passages:
        """The whole split as retrieval passages, one a document."""
        return Passages(
            tokens=self.tokens,
            offsets=self.offsets,
            documents=np.arange(self.n_documents, dtype=np.int64),
            vocab_size=vocab_size,
        )


@dataclass(frozen=True)
class Corpus:
    """A tokenised text with its splits and everything needed to say which text it was.

    Args:
        name: a short name for tables.
        fingerprint: sha256 over the texts, the tokenizer and the tokens: equal fingerprints, equal data.
        description: where the text came from and how much of it there is, ready for JSON.
        vocab_size: the number of tokens, the marker 0 included.
        token_bytes: exact length of each token in bytes of text; 0 for the marker.
        train, valid, test: documents of the same sources, no document in two splits.
        heldout: documents of sources that train has nothing of.
        tokenizer: turns tokens into text again.
        folder: where the corpus is cached.
    """

    name: str
    fingerprint: str
    description: dict[str, Any]
    vocab_size: int
    token_bytes: Int[np.ndarray, " vocab"]
    train: Split
    valid: Split
    test: Split
    heldout: Split | None = None
    tokenizer: Tokenizer | None = None
    folder: Path | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        present = {"train": self.train, "valid": self.valid, "test": self.test}
        return present if self.heldout is None else {**present, "heldout": self.heldout}

    def bits_per_byte(self, nats: float, n_bytes: int) -> float:
        """Summed nats over text of so many bytes, as bits per byte."""
        return nats / np.log(2.0) / n_bytes

    def decode(self, tokens: Int[np.ndarray, " token"]) -> str:
        """The text of these tokens; markers give nothing."""
        if self.tokenizer is None:
            raise CorpusError(
                f"corpus {self.name!r} was made without a tokenizer, so its tokens have no text"
            )
        return self.tokenizer.decode(tokens)


def cache_root(cache: str | Path | None = None) -> Path:
    """The folder for cached corpora: `cache`, else ``$MNEMOGRAPH_CACHE``, else the user's cache folder."""
    chosen = cache or os.environ.get("MNEMOGRAPH_CACHE") or user_cache_path("mnemograph", appauthor=False)
    return Path(chosen).expanduser() / "corpora"
