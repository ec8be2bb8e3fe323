import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.controls import audit
from experiments.controls.audit import overlap
from experiments.data.corpus import Corpus
from tests.experiments.data.toy import corpus as toy_corpus


def naive(corpus: Corpus, n: int) -> dict[str, float]:
    """Sets of tuples."""

    def pieces(name: str) -> list[tuple[int, ...]]:
        split = corpus.splits[name]
        return [tuple(split.document(j).tolist()) for j in range(split.n_documents)]

    known = {piece[i : i + n] for piece in pieces("train") for i in range(len(piece) - n)}
    shares = {}
    for name in corpus.splits:
        if name != "train":
            predicted = [(piece, i) for piece in pieces(name) for i in range(1, len(piece))]
            found = sum(1 for piece, i in predicted if i >= n and piece[i - n : i] in known)
            shares[name] = found / len(predicted)
    return shares


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_sets_of_tuples(seed: int) -> None:
    corpus = toy_corpus(seed, vocab_size=4)
    got = overlap(corpus, (1, 2, 4, 8))
    for n in (1, 2, 4, 8):
        wanted = naive(corpus, n)
        assert {name: row[n] for name, row in got.items()} == pytest.approx(wanted)
    assert got["valid"][1] > got["valid"][4] > got["valid"][8]


def test_a_split_that_is_train_again_is_found_whole() -> None:
    corpus = toy_corpus(0, vocab_size=200)
    corpus = replace(corpus, valid=replace(corpus.train, name="valid"))
    got = overlap(corpus, (8,))
    lengths = np.diff(corpus.train.offsets)
    assert got["valid"][8] == pytest.approx(np.maximum(lengths - 8, 0).sum() / (lengths - 1).sum())
    assert got["test"][8] == 0.0


def test_the_result_is_kept_beside_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = replace(toy_corpus(0, vocab_size=4), folder=tmp_path)
    first = overlap(corpus, (2, 4))
    with monkeypatch.context() as patched:
        patched.setattr(audit, "_hashes", None)
        assert overlap(corpus, (2, 4)) == first
    other = replace(toy_corpus(1, vocab_size=4), folder=tmp_path)
    assert overlap(other, (2, 4)) != first, "a note about another corpus is not believed"
    for spoilt in ("", "[]", json.dumps({"key": 3})):
        (tmp_path / "overlap.json").write_text(spoilt)
        assert overlap(corpus, (2, 4)) == first


def test_longer_than_any_document() -> None:
    assert overlap(toy_corpus(0), (128,)) == {name: {128: 0.0} for name in ("valid", "test", "heldout")}


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"\[6\] are no powers of two"):
        overlap(toy_corpus(0), (6, 8))
