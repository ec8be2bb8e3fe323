"""Byte-level tokens: byte-pair encoding or raw bytes, token 0 reserved as the document marker."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int, UInt16
from tokenizers import models, pre_tokenizers, trainers

MARKER = "<|document|>"
BYTES_VOCAB = 257  # the marker and the 256 bytes
CHUNK_CHARACTERS = 2_000_000  # what the encoder holds in memory at once


class Tokenizer:
    """Text to tokens and back, without loss.

    Token 0 is the document marker and is never produced from text: a text that contains the marker's own
    spelling is encoded as ordinary characters. Every other token stands for a fixed string of bytes.

    Byte-pair encoding as in `Neural Machine Translation of Rare Words with Subword Units
    <https://arxiv.org/abs/1508.07909>`_, over bytes.

    Args:
        model: a trained byte-level model of the ``tokenizers`` package, or ``None`` for raw bytes.
    """

    def __init__(self, model: tokenizers.Tokenizer | None) -> None:
        self._model = model
        self.pieces = [b"", *_pieces(model)]

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> "Tokenizer":
        """Learn `vocab_size` tokens (marker and all 256 bytes included) from texts; 257 gives raw bytes."""
        if not BYTES_VOCAB <= vocab_size <= 2**16:
            raise ValueError(
                f"vocab_size is {vocab_size}; give 257 (raw bytes) up to 65536 (tokens are kept in 16 bits)"
            )
        if vocab_size == BYTES_VOCAB:
            return cls(None)
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return cls(model)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what :meth:`to_json` wrote."""
        state = json.loads(text)
        return cls(
            None if state["model"] is None else tokenizers.Tokenizer.from_str(json.dumps(state["model"]))
        )

    def to_json(self) -> str:
        """Everything needed to encode the same way again."""
        model = None if self._model is None else json.loads(self._model.to_str())
        return json.dumps({"marker": MARKER, "model": model}, sort_keys=True)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, the marker included; a short text may have given fewer than asked."""
        return len(self.pieces)

    @property
    def token_bytes(self) -> Int[np.ndarray, " vocab"]:
        """The exact number of bytes each token stands for."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> list[UInt16[np.ndarray, " token"]]:
        """The tokens of each text, without markers."""
        if self._model is None:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) + np.uint16(1) for text in texts]
        encoded: list[np.ndarray] = []
        for chunk in _chunks(texts):
            for encoding in self._model.encode_batch_fast(chunk, add_special_tokens=False):
                encoded.append(np.array(encoding.ids, dtype=np.uint16) + np.uint16(1))
        return encoded

    def decode(self, tokens: Int[np.ndarray, " token"]) -> str:
        """The text of the tokens; bytes that a cut left incomplete become U+FFFD."""
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


def _pieces(model: tokenizers.Tokenizer | None) -> list[bytes]:
    """The bytes of each token of a model, in order of its ids."""
    if model is None:
        return [bytes([value]) for value in range(256)]
    byte_of = _byte_of_character()
    by_id = sorted(model.get_vocab().items(), key=lambda item: item[1])
    return [bytes(byte_of[character] for character in token) for token, _ in by_id]


def _byte_of_character() -> dict[str, int]:
    """The byte each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the rest are numbered from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    shifted = {chr(256 + rank): value for rank, value in enumerate(others)}
    return {**{chr(value): value for value in printable}, **shifted}


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts in groups small enough to encode at once."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
