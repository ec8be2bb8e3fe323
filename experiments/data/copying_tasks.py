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
    repeat-copy the delimiter is followed by a token that stands for a number; the answers are the symbols that many
    times over, and then, once, the end. Behind an example blanks fill it up to the length of the longest, at which
    nothing is asked.

    Reference:
        Graves et al., "Neural Turing machines", 2014. arXiv:1410.5401.

    Args:
        symbols: Different symbols.
        lengths: Symbols of an example, the fewest and the most; all numbers between are as likely.
        repeats: The fewest and the most repetitions; ``None``: copy.
        most_repeats: Repetitions that there are tokens for, so that a corpus of more repetitions than another has the
            same vocabulary; by default the most of ``repeats``.
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
        most_repeats: int | None = None,
        examples: int = 20_000,
        test_examples: int = 500,
        seed: int = 0,
    ) -> None:
        if symbols < 1:
            raise CorpusError(f"{symbols} symbols to copy: give 1 or more")
        for name, (low, high) in {"lengths": lengths, "repeats": repeats or (1, 1)}.items():
            if not 1 <= low <= high:
                raise CorpusError(f"{name} from {low} to {high}: give 1 <= from <= to")
        most = 0 if repeats is None else repeats[1] if most_repeats is None else most_repeats
        if repeats is not None and most < repeats[1]:
            raise CorpusError(f"most_repeats={most}, but {repeats[1]} are asked for: give at least as many")
        self.symbols, self.lengths, self.repeats, self.most_repeats = symbols, lengths, repeats, most
        self.examples, self.test_examples, self.seed = examples, test_examples, seed

    @property
    def longest(self) -> int:
        """Tokens of an example, the marker before it not counted."""
        return _size(self.lengths[1], 0 if self.repeats is None else self.repeats[1])

    @property
    def vocab_size(self) -> int:
        """Tokens: special ones, symbols, and numbers of repetitions."""
        return SPECIAL + self.symbols + self.most_repeats

    def load(self, progress: Callable[[str, float], None] | None = None) -> Corpus:
        """Make the examples: the same ones each time."""
        described = {
            "symbols": self.symbols,
            "lengths": list(self.lengths),
            "repeats": None if self.repeats is None else list(self.repeats),
            "most_repeats": self.most_repeats,
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
    longest = int(lengths.max(initial=1))
    shown = longest + 1 + int(times.max(initial=1)) * longest + 2
    wide = max(size or 0, shown)
    drawn = generator.integers(SPECIAL, SPECIAL + symbols, (n, longest))
    tokens, answers = np.full((n, wide), BLANK), np.full((n, wide), -100)
    places = np.arange(wide)
    column = lengths[:, None]
    told = places < column
    tokens[:, :longest] = np.where(told[:, :longest], drawn, BLANK)
    np.put_along_axis(tokens, column, DELIMITER, 1)
    first = column + 1
    if repeats is not None:
        np.put_along_axis(tokens, first, SPECIAL + symbols - 1 + repeats[:, None], 1)
        first = first + 1
    last = first + column * times[:, None]
    asked = (places >= first) & (places < last)
    again = np.take_along_axis(drawn, np.where(asked, (places - first) % column, 0), 1)
    answers[asked] = again[asked]
    if repeats is not None:
        np.put_along_axis(answers, last, END, 1)
    size = int((last + (repeats is not None)).max(initial=1)) if size is None else size
    return tokens[:, :size], answers[:, :size]


def _size(length: int, repeats: int) -> int:
    """Tokens of the longest example: of repeat-copy those of the number and of the end too."""
    return length * (1 + repeats) + 3 if repeats else 2 * length + 1
