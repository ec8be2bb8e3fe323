"""Losses document by document: they add up to the split's, for trained arms and for what is derived from them."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.arms import NO_STORE, SAME_TOKENS, WHOLE_CORPUS
from experiments.data import TextCorpus
from experiments.evaluation import Evaluation, Scored, evaluate, losses_of
from experiments.run import Run, execute
from experiments.workspace import Workspace
from mann import Transformer
from tests.experiments.data import toy

SETTINGS = {"layers": 1, "heads": 2, "batch": 2, "time": 32, "k": 4, "evaluation_tokens": 512, "counts": True}


def test_targets_belong_to_the_document_they_stand_in() -> None:
    split = toy.split(3, name="test", n=9, longest=60)
    corpus = toy.corpus()
    evaluation = Evaluation.of(corpus, split, 16, 10_000)
    network = Transformer(corpus.vocab_size, 16, 1)
    scored = evaluate(network, evaluation, autocast=False)
    told = scored.by_document()
    # Read off the stream itself: every token but the first of a window's reach, markers left out.
    last = len(evaluation.chosen) * 16
    owner = np.searchsorted(split.offsets, np.arange(1, last + 1), side="right") - 1
    tokens = split.tokens[1 : last + 1]
    expected = [int(corpus.token_bytes[tokens[(owner == place) & (tokens != 0)]].sum()) for place in range(9)]
    assert told["bytes"] == expected
    assert sum(told["bytes"]) == scored.n_bytes
    assert sum(told["nats"]) == pytest.approx(float(scored.nll.sum(dtype=np.float64)), abs=1e-3)


def test_documents_that_evaluation_does_not_reach_are_zero() -> None:
    scored = Scored(np.array([1.0, 2.0, 4.0]), np.array([3, 1, 2]), np.array([1, 1, 3]), 5)
    assert scored.by_document() == {"nats": [0, 3.0, 0, 4.0, 0], "bytes": [0, 4, 0, 2, 0]}
    losses = losses_of({"valid": scored, "test": scored})
    assert "documents" not in losses["valid"]
    assert losses["test"]["bits_per_byte"] == pytest.approx(7 / 6 / math.log(2))


def test_every_row_of_a_run_tells_the_same_documents(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    corpus = TextCorpus(folder, vocab_size=257, cache=tmp_path / "corpora", pattern="test_*.py")
    workspace = Workspace(corpus, tmp_path / "out", tmp_path / "cache")
    rows = execute(Run("test", "ngram", SAME_TOKENS, 0, 16, 2e9, SETTINGS), workspace)
    assert [row["arm"] for row in rows] == [
        "ngram",
        "ngram, memory off",
        "ngram + counts",
        "ngram + counts + recency",
    ]
    told = [row["losses"]["test"]["documents"] for row in rows]
    assert all(each["bytes"] == told[0]["bytes"] for each in told)
    for row, each in zip(rows, told, strict=True):
        bits = sum(each["nats"]) / math.log(2) / sum(each["bytes"])
        assert bits == pytest.approx(row["losses"]["test"]["bits_per_byte"], rel=1e-5)
    assert len({tuple(each["nats"]) for each in told}) == 4
    # Two tables, of which each position reads two rows of each order; shuffled they are worth something else.
    tables = rows[0]["probes"]["tables"]
    assert set(tables) == {"memory.0.table", "memory.1.table"}
    assert 0 < tables["memory.0.table"]["used"] < 1
    assert tables["memory.0.table"]["reads"] == tables["memory.1.table"]["reads"]
    shuffled = rows[0]["probes"]["shuffled"]["nats_per_token"]
    assert shuffled != rows[0]["losses"]["test"]["nats_per_token"]


def test_dense_is_mixed_with_what_the_text_itself_has_said_too(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    corpus = TextCorpus(folder, vocab_size=257, cache=tmp_path / "corpora", pattern="test_*.py")
    workspace = Workspace(corpus, tmp_path / "out", tmp_path / "cache")
    rows = execute(Run("test", "dense", NO_STORE, 0, 16, 2e9, SETTINGS), workspace)
    names = [(row["arm"], row["regime"]) for row in rows]
    assert names == [
        ("dense", NO_STORE),
        ("dense + counts", SAME_TOKENS),
        ("dense + counts + recency", SAME_TOKENS),
        ("dense + counts", WHOLE_CORPUS),
    ]
    assert {row.get("parent") for row in rows[1:]} == {rows[0]["run"]}
    _, counts, recent, _ = (row["losses"]["test"]["bits_per_byte"] for row in rows)
    assert recent != counts
    assert rows[2]["read_flops"] > rows[1]["read_flops"]
    assert rows[2]["train_flops"] == rows[1]["train_flops"]
