"""Copying: say again what was read, once or several times; longer than ever trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.data.corpus import Corpus, CorpusError
from experiments.data.tasks import Examples, task_corpus

DELIMITER, BLANK, END = 1, 2, 3
SPECIAL = 4
"""Tokens that are no symbols: the marker 0 before each example, delimiter, blank, and the end of repeat-copy."""


class CopyCorpus:
    r"""Copy and repeat-copy: symbols, a delimiter, then blanks at which the symbols are asked for.

    Copy is ``s_1 ... s_L delimiter blank ... blank``: the symbols in order are the answers at the blanks. In
    repeat-copy the delimiter is said as often as the symbols are to be repeated; the answers are the symbols that many
    times over, and then, once, the end. The paper gives the number of repetitions as a number; a token for each would
    say nothing of numbers that training does not have, delimiters do. Behind an example blanks fill it up to the
    length of the longest, at which nothing is asked.

    Reference:
        Graves et al., "Neural Turing machines", 2014. arXiv:1410.5401.

    Args:
        symbols: Different symbols.
        lengths: Symbols of an example, the fewest and the most; all numbers between are as likely.
        repeats: The fewest and the most repetitions; ``None``: copy.
        examples: Examples of training.
        test_examples: Examples of valid, and of test.
        seed: Of the generator, which is nobody else's.

    Raises:
        CorpusError: If there are no symbols, or a range is empty.
    """

    def __init__(
        self,
        symbols: int = 16,
        lengths: tuple[int, int] = (1, 20),
        repeats: tuple[int, int] | None = None,
        examples: int = 20_000,
        test_examples: int = 500,
        seed: int = 0,
    ) -> None:
        if symbols < 1:
            raise CorpusError(f"{symbols} symbols to copy: give 1 or more")
        for name, (low, high) in {"lengths": lengths, "repeats": repeats or (1, 1)}.items():
            if not 1 <= low <= high:
                raise CorpusError(f"{name} from {low} to {high}: give 1 <= from <= to")
        self.symbols, self.lengths, self.repeats = symbols, lengths, repeats
        self.examples, self.test_examples, self.seed = examples, test_examples, seed

    @property
    def longest(self) -> int:
        """Tokens of an example, the marker before it not counted."""
        return _size(self.lengths[1], 0 if self.repeats is None else self.repeats[1])

    @property
    def vocab_size(self) -> int:
        """Tokens: special ones and symbols, for all lengths and repetitions the same."""
        return SPECIAL + self.symbols

    def load(self, progress: Callable[[str, float], None] | None = None) -> Corpus:
        """Make the examples: the same ones each time."""
        described = {
            "symbols": self.symbols,
            "lengths": list(self.lengths),
            "repeats": None if self.repeats is None else list(self.repeats),
            "count": None if self.repeats is None else "delimiters",
            "examples": [self.examples, self.test_examples],
        }
        name = "copy" if self.repeats is None else "repeat-copy"
        return task_corpus(name, self.vocab_size, self._examples, self.seed, described)

    def _examples(self, split: str, generator: np.random.Generator) -> list[Examples]:
        n = self.examples if split == "train" else self.test_examples
        lengths = generator.integers(self.lengths[0], self.lengths[1] + 1, n)
        repeats = None
        if self.repeats is not None:
            repeats = generator.integers(self.repeats[0], self.repeats[1] + 1, n)
        return [copy_examples(lengths, self.symbols, generator, repeats, self.longest)]


def copy_examples(
    lengths: np.ndarray,
    symbols: int,
    generator: np.random.Generator,
    repeats: np.ndarray | None = None,
    size: int | None = None,
) -> Examples:
    """Examples of copy, or of repeat-copy; see :class:`CopyCorpus`.

    Args:
        lengths: Symbols of each.
        symbols: Different symbols there are.
        generator: Draws the symbols.
        repeats: How often each is to be said; ``None``: copy.
        size: Tokens of every example; by default those of the longest.
    """
    n = len(lengths)
    times = np.ones(n, np.int64) if repeats is None else repeats
    longest, most = int(lengths.max(initial=1)), int(times.max(initial=1))
    wide = max(size or 0, _size(longest, most))
    drawn = generator.integers(SPECIAL, SPECIAL + symbols, (n, longest))
    tokens, answers = np.full((n, wide), BLANK), np.full((n, wide), -100)
    places = np.arange(wide)
    column = lengths[:, None]
    told = places < column
    tokens[:, :longest] = np.where(told[:, :longest], drawn, BLANK)
    first = column + times[:, None]
    tokens[(places >= column) & (places < first)] = DELIMITER
    last = first + column * times[:, None]
    asked = (places >= first) & (places < last)
    again = np.take_along_axis(drawn, np.where(asked, (places - first) % column, 0), 1)
    answers[asked] = again[asked]
    if repeats is not None:
        np.put_along_axis(answers, last, END, 1)
    size = int((last + (repeats is not None)).max(initial=1)) if size is None else size
    return tokens[:, :size], answers[:, :size]


def _size(length: int, repeats: int) -> int:
    """Tokens of the longest example: of repeat-copy the delimiters and the end too."""
    return (1 + length) * (1 + repeats) if repeats else 2 * length + 1
