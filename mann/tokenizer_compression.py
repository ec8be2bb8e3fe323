"""Tokens that spell the same but for case, accents and spaces become one, before n-grams of them are hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import normalizers

__all__ = ["TokenizerCompression"]

# What decoding gives for bytes that are no whole character.
REPLACEMENT = "\ufffd"
# Stands for a token that is one space while spaces are stripped; no text has this private-use character.
SPACE = "\ue000"
# The order matters: stripping accents needs characters decomposed, and a lone space is one only once runs are joined.
_NORMALIZER = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(tokenizers.Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(tokenizers.Regex(r"^ $"), SPACE),
        normalizers.Strip(),
        normalizers.Replace(SPACE, " "),
    ]
)


class TokenizerCompression:
    r"""A map of token ids onto fewer: ids whose texts are equal once normalised share one.

    Each id is decoded alone and normalised: NFKC, NFD, no accents, lower case, runs of blanks as one space, no space
    at either end unless it is all there is. A text with U+FFFD, bytes that are no whole character, is told by the
    token's own spelling; one of which nothing is left by what it was. New ids are numbered as they are first seen.

    Hashes depend on it, so a table that was trained with one means nothing with another: :attr:`fingerprint` and
    :attr:`size` tell them apart.

    Reference:
        Cheng et al., "Conditional Memory via Scalable Lookup" (Engram), 2026. arXiv:2601.07372.

    Args:
        ids: The new id of each token id.

    Shapes:
        ids: ``[vocab]``.

    Raises:
        ValueError: If the new ids are not all numbers from 0 up to the largest.
    """

    def __init__(self, ids: Int[np.ndarray, " vocab"]) -> None:
        self.ids = np.array(ids, dtype=np.int64)
        if not len(self.ids):
            raise ValueError("no ids: a vocabulary has at least one token")
        if not np.array_equal(np.unique(self.ids), np.arange(self.ids.max() + 1)):
            raise ValueError(
                f"new ids up to {self.ids.max()} that leave some out: every number from 0 up to the largest must occur"
            )
        self.ids.flags.writeable = False

    @classmethod
    def from_tokenizer(cls, tokenizer: tokenizers.Tokenizer) -> TokenizerCompression:
        """That of a tokenizer of the ``tokenizers`` package (``tokenizer.backend_tokenizer`` in transformers).

        Args:
            tokenizer: Added tokens count as tokens.
        """

        def decode(token: int) -> str:
            return tokenizer.decode([token], skip_special_tokens=False)

        def spelling(token: int) -> str:
            return str(tokenizer.id_to_token(token))

        return cls.from_decode(decode, tokenizer.get_vocab_size(with_added_tokens=True), spelling)

    @classmethod
    def from_decode(
        cls, decode: Callable[[int], str], vocab_size: int, spelling: Callable[[int], str] | None = None
    ) -> TokenizerCompression:
        """That of any vocabulary.

        Args:
            decode: The text of one token.
            vocab_size: Number of tokens.
            spelling: What tells a token that is no whole character from others; by default its number.
        """
        known: dict[str, int] = {}
        keys = (_key(decode, spelling, token) for token in range(vocab_size))
        return cls(np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64))

    @classmethod
    def identity(cls, vocab_size: int) -> TokenizerCompression:
        """Every token for itself.

        Args:
            vocab_size: Number of tokens.
        """
        return cls(np.arange(vocab_size))

    @property
    def size(self) -> int:
        """How many ids are left."""
        return int(self.ids.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the map, the same on every machine."""
        return hashlib.sha256(b"tokenizer compression 1\n" + self.ids.astype("<i8").tobytes()).hexdigest()

    @property
    def is_identity(self) -> bool:
        """Whether every token stands for itself."""
        return self.size == len(self.ids) and bool((self.ids[1:] > self.ids[:-1]).all())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.ids)} -> {self.size}, {self.fingerprint[:12]})"


def _key(decode: Callable[[int], str], spelling: Callable[[int], str] | None, token: int) -> str:
    text = decode(token)
    if REPLACEMENT in text:
        return f"{REPLACEMENT}{token}" if spelling is None else spelling(token)
    return _NORMALIZER.normalize_str(text) or text
