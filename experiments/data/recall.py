"""Associative recall: which value came with this key?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from experiments.data.corpus import Corpus, CorpusError
from experiments.data.tasks import Examples, task_corpus


class RecallCorpus:
    r"""Multi-query associative recall: pairs of a key and a value, then each key once more, in random places.

    `Zoology <https://arxiv.org/abs/2312.04927>`_. Keys are of the lower half of the vocabulary, values of the upper,
    both without repetition; what is asked at a key is its value, which is not in the text again. A key comes back
    :math:`2 g` places behind the pairs, with :math:`P(g) \propto a g^{a - 1}` without repetition; the places between
    hold random tokens.

    Args:
        vocab_size: Tokens.
        lengths: Length of examples, the marker before each not counted; as many of each. How a model does on longer
            ones than it was trained on is asked with a corpus of their own.
        pairs: Pairs of an example; of each length, those that fit.
        examples: Examples of training.
        test_examples: Examples of valid, and of test.
        power: :math:`a`.
        seed: Of the generator, which is nobody else's.

    Raises:
        CorpusError: If no number of pairs fits into a length, or there are more pairs than keys.
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        lengths: Sequence[int] = (63, 127, 255),
        pairs: Sequence[int] = (4, 8, 16, 32, 64),
        examples: int = 60_000,
        test_examples: int = 1_000,
        power: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.vocab_size, self.power, self.seed = vocab_size, power, seed
        self.examples, self.test_examples = examples, test_examples
        self.shapes = _shapes(lengths, pairs, vocab_size)

    @property
    def longest(self) -> int:
        """Tokens of the longest example of training."""
        return max(length for length, _ in self.shapes)

    def load(self, progress: Callable[[str, float], None] | None = None) -> Corpus:
        """Make the examples: the same ones each time."""
        described = {
            "vocab_size": self.vocab_size,
            "power": self.power,
            "shapes": self.shapes,
            "examples": [self.examples, self.test_examples],
        }
        return task_corpus("recall", self.vocab_size, self._examples, self.seed, described)

    def _examples(self, split: str, generator: np.random.Generator) -> list[Examples]:
        total = self.examples if split == "train" else self.test_examples
        counts = np.diff(np.linspace(0, total, len(self.shapes) + 1).round().astype(int))
        return [
            recall_examples(int(count), length, pairs, self.vocab_size, self.power, generator)
            for count, (length, pairs) in zip(counts, self.shapes, strict=True)
            if count
        ]


def recall_examples(
    n: int, length: int, pairs: int, vocab_size: int, power: float, generator: np.random.Generator
) -> Examples:
    """Examples of one length and number of pairs; see :class:`RecallCorpus`.

    Args:
        n: How many.
        length: Tokens of each.
        pairs: Keys of each.
        vocab_size: Tokens there are, of which 0 is not used.
        power: How the distances are spread.
        generator: Draws everything.
    """
    half = vocab_size // 2
    distances = np.arange(1, (length - 2 * pairs) // 2 + 1)
    keys = 1 + _any_of(half - 1, n, pairs, generator)
    values = half + _any_of(vocab_size - half, n, pairs, generator)
    at = 2 * pairs + 2 * _far(np.log(power) + (power - 1) * np.log(distances), n, pairs, generator)
    tokens, answers = generator.integers(1, vocab_size, (n, length)), np.full((n, length), -100)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(tokens, at, keys, 1)
    np.put_along_axis(answers, at, values, 1)
    return tokens, answers


def _any_of(size: int, n: int, k: int, generator: np.random.Generator) -> np.ndarray:
    """``k`` of so many numbers for each of ``n`` rows, in random order, by Floyd's algorithm (Bentley 1987)."""
    chosen = np.full((n, k), -1)
    for place, last in enumerate(range(size - k, size)):
        drawn = generator.integers(0, last + 1, n)
        again = (chosen[:, :place] == drawn[:, None]).any(1)
        chosen[:, place] = np.where(again, last, drawn)
    return generator.permuted(chosen, axis=1)


def _far(log_weights: np.ndarray, n: int, k: int, generator: np.random.Generator) -> np.ndarray:
    """``k`` different places for each row, by weight: the largest after Gumbel noise."""
    noisy = log_weights + generator.gumbel(size=(n, len(log_weights)))
    return generator.permuted(np.argpartition(-noisy, k - 1, axis=1)[:, :k], axis=1)


def _shapes(lengths: Sequence[int], pairs: Sequence[int], vocab_size: int) -> list[tuple[int, int]]:
    """Each length with each number of pairs that fits: two tokens a pair, and two for each query."""
    if not pairs or min(pairs) < 1 or max(pairs) > vocab_size // 2 - 1:
        raise CorpusError(f"{list(pairs)} pairs of {vocab_size} tokens: give 1 to {vocab_size // 2 - 1}")
    shapes = [(length, count) for length in lengths for count in pairs if 4 * count <= length]
    for length in lengths:
        if 4 * min(pairs) > length:
            raise CorpusError(f"{min(pairs)} pairs need examples of {4 * min(pairs)} tokens, got {length}")
    return shapes
