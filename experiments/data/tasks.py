"""Made-up tasks as corpora: each example is a document, and only some of its positions are asked something."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.data.build import digest_of
from experiments.data.corpus import Corpus, CorpusError, Split

Examples = tuple[Int[np.ndarray, "n length"], Int[np.ndarray, "n length"]]
"""Tokens, 1 and above, and what is asked at each, -100 for nothing."""

SPLITS = ("train", "valid", "test")


def task_corpus(
    name: str,
    vocab_size: int,
    examples: Callable[[str, np.random.Generator], list[Examples]],
    seed: int,
    description: Mapping[str, Any],
) -> Corpus:
    """Examples of a task as a corpus.

    An answer stands for one byte, so that "bits per byte" are bits per answer. Windows as long as the longest example
    and its marker hold whole examples.

    Args:
        name: The task.
        vocab_size: Tokens, the marker 0 before each example included.
        examples: Makes those of a split with a generator of its own, those of one length together.
        seed: Of all splits.
        description: What decides the examples, ready for JSON.
    """
    if not 2 <= vocab_size <= 2**16:
        raise CorpusError(f"{name} with {vocab_size} tokens: give 2 to {2**16}")
    described = {"source": name, "seed": seed, **description}
    splits = {
        split: _stream(split, examples(split, generator), generator)
        for split, generator in zip(SPLITS, np.random.default_rng(seed).spawn(len(SPLITS)), strict=True)
    }
    made = [np.asarray(array) for split in splits.values() for array in (split.tokens, split.answers)]
    told = [digest_of(described), *(hashlib.sha256(array.tobytes()).hexdigest() for array in made)]
    token_bytes = np.ones(vocab_size, np.int64)
    token_bytes[0] = 0
    train, valid, test = splits.values()
    return Corpus(name, digest_of(told), described, vocab_size, token_bytes, train, valid, test)


def _stream(name: str, groups: list[Examples], generator: np.random.Generator) -> Split:
    """The examples of all groups, each behind a marker, in a random order that never cuts one: shorter ones stand
    together, as many as are as long as the longest. What is left over of a group is dropped.

    A last marker makes whole windows of whole examples: a window reaches for the token behind it.
    """
    lengths = [1 + tokens.shape[1] for tokens, _ in groups]
    longest = max(lengths, default=1)
    if any(longest % length for length in lengths):
        raise CorpusError(
            f"examples of {sorted(length - 1 for length in lengths)} tokens: with the marker before each, every length "
            f"must divide the longest, {longest}"
        )
    parts = [np.zeros((0, longest, 3), np.int64)]
    for length, (tokens, asked) in zip(lengths, groups, strict=True):
        n = len(tokens) * length // longest * (longest // length)
        columns = np.zeros((n, length, 3), np.int64)
        columns[:, 0, 1:] = -100, 1
        columns[:, 1:, 0], columns[:, 1:, 1] = tokens[:n], asked[:n]
        parts.append(columns.reshape(-1, longest, 3))
    rows = np.concatenate(parts)
    if not len(rows):
        raise CorpusError(f"too few examples for one window of {longest} in split {name!r}: ask for more")
    stream = rows[generator.permutation(len(rows))].reshape(-1, 3)
    tokens = np.append(stream[:, 0], 0).astype(np.uint16)
    offsets = np.append(np.flatnonzero(stream[:, 2]), [len(stream), len(tokens)])
    return Split(name, tokens, offsets, np.append(stream[:, 1], -100))
