"""How much of the text that is evaluated can be found, word for word, in the text that is trained on."""

import json
from collections.abc import Sequence

import numpy as np

from experiments.data.cache import write_json
from experiments.data.corpus import Corpus, Progress, Split
from experiments.data.windows import mix64

LENGTHS = (8, 16, 32)


def overlap(
    corpus: Corpus, lengths: Sequence[int] = LENGTHS, progress: Progress | None = None
) -> dict[str, dict[int, float]]:
    """The share of predicted tokens whose preceding n tokens occur, in this order, in one document of train.

    Predicted tokens are all but the markers; one with fewer than n tokens before it in its document counts as
    not found. N-grams are compared by 64-bit hashes. The result is kept beside a cached corpus.

    Args:
        corpus: the corpus; all its splits but train are looked up.
        lengths: the values of n, powers of two.
        progress: called as the work goes on.

    Returns:
        ``{split: {n: share}}``.
    """
    wrong = [n for n in lengths if n < 1 or n & (n - 1)]
    if wrong:
        raise ValueError(f"lengths {wrong} are no powers of two; choose from 1, 2, 4, 8, ...")
    report = progress or (lambda stage, share: None)
    path = None if corpus.folder is None else corpus.folder / "overlap.json"
    key = f"{corpus.fingerprint} {sorted(lengths)}"
    if path is not None and path.is_file():
        try:
            kept = json.loads(path.read_text())
            if kept["key"] == key:
                return {
                    name: {int(n): share for n, share in row.items()} for name, row in kept["shares"].items()
                }
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
            pass  # a spoilt note is worth nothing and is written anew
    others = {name: split for name, split in corpus.splits.items() if name != "train"}
    shares: dict[str, dict[int, float]] = {name: {} for name in others}
    train = _hashes(corpus.train, lengths)
    evaluated = {name: _hashes(split, lengths) for name, split in others.items()}
    for done, n in enumerate(lengths):
        known = np.sort(train.pop(n))
        for name, split in others.items():
            found = _contains(known, evaluated[name].pop(n))
            # The n-gram that ends a document precedes no token.
            predicted = len(split) - split.n_documents
            shares[name][n] = float(found) / max(1, predicted)
        report("comparing with train", (done + 1) / len(lengths))
    if path is not None:
        write_json(path, {"key": key, "shares": shares})
    return shares


def _hashes(split: Split, lengths: Sequence[int]) -> dict[int, np.ndarray]:
    """By length, the hashes of all n-grams inside a document that stand before a token of it."""
    ends_of = np.repeat(split.offsets[1:], np.diff(split.offsets))
    room = np.minimum(ends_of - np.arange(len(split)), 2**15).astype(np.int16)  # tokens from here to the end
    del ends_of
    hashes = mix64(split.tokens.astype(np.uint64))
    result: dict[int, np.ndarray] = {}
    n = 1
    while True:
        if n in lengths:
            # One token must follow inside the document, so that the n-gram precedes something.
            result[n] = hashes[room[: len(hashes)] > n]
        if n >= max(lengths) or len(hashes) <= n:
            break
        # Two halves of n tokens make 2n; the first is mixed again so that their order matters.
        hashes = mix64(hashes[:-n]) + hashes[n:]
        n *= 2
    return {length: result.get(length, np.zeros(0, np.uint64)) for length in lengths}


def _contains(known: np.ndarray, wanted: np.ndarray) -> int:
    """How many of the wanted hashes are among the known, ascending ones."""
    if not len(known):
        return 0
    wanted = np.sort(wanted)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return int((known[place] == wanted).sum())
