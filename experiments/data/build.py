"""From documents to a corpus: a tokenizer learned on train, every split encoded, one fingerprint over all."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.data.corpus import Corpus, CorpusError, Progress, Split
from experiments.data.tokenizer import Tokenizer

SAMPLE_BYTES = 9_000_000
"""How much of train the tokenizer learns from; more changes the tokens little and takes longer."""


@dataclass(frozen=True)
class Documents:
    """The texts of one split, in order, each with the label it is known by (a path, a title)."""

    name: str
    labels: Sequence[str]
    texts: Sequence[str]


def build(
    name: str,
    splits: Sequence[Documents],
    vocab_size: int,
    description: dict[str, Any],
    progress: Progress | None = None,
) -> Corpus:
    """Tokenise documents into a corpus.

    Args:
        name: the corpus' name.
        splits: documents of ``train`` (tokens are learned on it), ``valid``, ``test``, perhaps ``heldout``.
        vocab_size: tokens to learn, 257 for raw bytes.
        description: what to say about the origin; sizes of the splits are added to it.
        progress: called as the work goes on.

    Raises:
        CorpusError: a split has no text.
    """
    by_name = {documents.name: documents for documents in splits}
    for documents in splits:
        if not any(documents.texts):
            raise CorpusError(f"split {documents.name!r} of {name!r} has no text; give more documents")
    report = progress or (lambda stage, share: None)
    report("learning tokens", 0.0)
    tokenizer = Tokenizer.train(_sample(by_name["train"].texts), vocab_size)
    report("learning tokens", 1.0)
    total = sum(len(text) for documents in splits for text in documents.texts)
    done = 0
    encoded: dict[str, Split] = {}
    for documents in splits:
        pieces: list[np.ndarray] = []
        for chunk in _groups(documents.texts):
            pieces += tokenizer.encode(chunk)
            done += sum(map(len, chunk))
            report("encoding", done / total)
        encoded[documents.name] = _split(documents.name, pieces)
    token_bytes = tokenizer.token_bytes
    described = {
        **description,
        "vocab_size": tokenizer.vocab_size,
        "splits": {key: _summary(split, token_bytes) for key, split in encoded.items()},
    }
    return Corpus(
        name=name,
        fingerprint=_fingerprint(described, tokenizer, splits, encoded),
        description=described,
        vocab_size=tokenizer.vocab_size,
        token_bytes=token_bytes,
        train=encoded["train"],
        valid=encoded["valid"],
        test=encoded["test"],
        heldout=encoded.get("heldout"),
        tokenizer=tokenizer,
    )


def digest_of(value: object) -> str:
    """The sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sample(texts: Sequence[str]) -> list[str]:
    """The first documents, up to the sample size; splits come in shuffled order, so these are a fair draw."""
    chosen: list[str] = []
    size = 0
    for text in texts:
        if size >= SAMPLE_BYTES:
            break
        chosen.append(text[:SAMPLE_BYTES])
        size += len(text)
    return chosen


def _groups(texts: Sequence[str], size: int = 256) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _split(name: str, pieces: Sequence[np.ndarray]) -> Split:
    """Concatenate encoded documents, a marker before each."""
    lengths = np.array([len(piece) + 1 for piece in pieces], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = np.zeros(int(offsets[-1]), dtype=np.uint16)
    for start, piece in zip(offsets[:-1], pieces, strict=True):
        tokens[start + 1 : start + 1 + len(piece)] = piece
    return Split(name, tokens, offsets)


def _summary(split: Split, token_bytes: np.ndarray) -> dict[str, int]:
    return {"documents": split.n_documents, "tokens": len(split), "bytes": split.bytes_of(token_bytes)}


def _fingerprint(
    description: dict[str, Any],
    tokenizer: Tokenizer,
    splits: Sequence[Documents],
    encoded: dict[str, Split],
) -> str:
    parts: dict[str, Any] = {
        "description": description,
        "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
    }
    for documents in splits:
        split = encoded[documents.name]
        parts[documents.name] = {
            "labels": digest_of(list(documents.labels)),
            "tokens": hashlib.sha256(split.tokens.tobytes()).hexdigest(),
            "offsets": hashlib.sha256(split.offsets.tobytes()).hexdigest(),
        }
    return digest_of(parts)
