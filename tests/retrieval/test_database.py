from __future__ import annotations

import os
import pickle
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import lancedb
import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from retrieval import Index
from retrieval.database import LanceIndex
from retrieval.exact import exact_search
from tests.retrieval.crashes import forked


def vectors(seed: int, n: int, d: int = 12) -> torch.Tensor:
    """Random vectors, some of them several times."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32))
    x[n // 2 : n // 2 + n // 10] = x[n // 2]
    return x


def table(folder, rows: dict) -> None:
    lancedb.connect(folder).create_table("theirs", pyarrow.table(rows))


def lists(x: np.ndarray) -> pyarrow.Array:
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.ravel()), x.shape[1])


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_answers_are_those_of_brute_force(tmp_path, metric):
    x = vectors(0, 600)
    queries = torch.cat([vectors(1, 20), x[300:303]])
    index = LanceIndex(tmp_path, metric=metric).add(x[:400]).add(x[400:])
    assert len(index) == 600
    flat = Index("Flat", metric).add(x)
    for k in (1, 10, 70, 600, 605):
        found, same = index.search(queries, k), flat.search(queries, k)
        assert torch.equal(found.ids, same.ids)
        assert torch.equal(found.scores, same.scores)
        assert torch.equal(found.mask, same.mask)
        truth = exact_search(queries, x, k, metric=metric)
        assert torch.allclose(found.scores, truth.scores, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 30), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_order_does_not_depend_on_the_batch(tmp_path_factory, seed, k, scale):
    x = scale * vectors(seed, 150, d=5).round()  # whole numbers, so that many scores are equal
    index = LanceIndex(tmp_path_factory.mktemp("db"), metric="l2" if seed % 2 else "ip").add(x)
    queries = x[torch.randperm(150, generator=torch.Generator().manual_seed(seed))[:7]].view(7, 5)
    whole = index.search(queries, k)
    for i in range(7):
        alone = index.search(queries[i], k)
        assert torch.equal(alone.ids, whole.ids[i])
        assert torch.equal(alone.scores, whole.scores[i])
    assert (whole.scores.diff(dim=-1) <= 0).all()
    tied = whole.scores.diff(dim=-1) == 0
    assert (whole.ids.diff(dim=-1)[tied] > 0).all()


def test_a_table_is_there_for_the_next_process(tmp_path):
    x = vectors(2, 200)
    index = LanceIndex(tmp_path).add(x[:120])
    other = LanceIndex(tmp_path)
    assert len(other) == 120
    other.add(x[120:])
    assert torch.equal(other.search(x[:5], 8).ids, Index("Flat").add(x).search(x[:5], 8).ids)
    assert len(index) == 120  # what it has opened stays as it was
    index.add(x[:1])
    assert len(index) == 201
    assert LanceIndex(tmp_path).search(x[:1], 300).ids[0].unique().numel() == 201


def test_a_table_of_the_users_is_searched_by_its_own_ids(tmp_path):
    x = vectors(3, 300).numpy()
    ids = np.arange(300)[::-1] * 7
    table(tmp_path, {"key": ids, "text": ["x"] * 300, "embedding": lists(x)})
    theirs = LanceIndex(tmp_path, "theirs", vector="embedding", id="key")
    # Thirty rows are the same, and the smallest ids among them come last in the table.
    asked = torch.from_numpy(np.concatenate([x[:4], 10 * x[150:151]]))
    found = theirs.search(asked, 6)
    everything = Index("Flat").add(torch.from_numpy(x)).search(asked, 300)
    scores, named = everything.scores.numpy(), ids[everything.ids.numpy()]
    order = np.lexsort((named, -scores))[:, :6]
    assert found.ids.tolist() == np.take_along_axis(named, order, 1).tolist()
    assert found.scores.tolist() == np.take_along_axis(scores, order, 1).tolist()


@pytest.mark.parametrize("wide", [1, 2**33, 2**40 + 1])
def test_ids_are_64_bits_wide(tmp_path, wide):
    x = vectors(10, 120).round()  # whole numbers, so that many scores are equal
    ids = wide * np.arange(120)
    table(tmp_path, {"id": ids, "vector": lists(x.numpy())})
    theirs, same = LanceIndex(tmp_path, "theirs"), Index("Flat").add(x).search(x[:9], 20)
    found = theirs.search(x[:9], 20)
    assert found.ids.tolist() == ids[same.ids.numpy()].tolist()
    assert torch.equal(found.scores, same.scores)
    assert theirs.add(x[:1]).search(x[:1], 121).ids.max() == 119 * wide + 1


def test_two_that_add_at_once_give_out_no_id_twice(tmp_path):
    x = vectors(11, 40)
    LanceIndex(tmp_path).add(x[:1])
    writers = [LanceIndex(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda writer: [writer.add(x[i : i + 5]) for i in range(0, 40, 5)], writers))
    assert len(LanceIndex(tmp_path)) == 1 + 4 * 40


def test_a_foreign_writer_that_repeats_an_id_is_noticed(tmp_path):
    class Late(LanceIndex):
        """Between its look at the table and its writing another program writes."""

        def _append(self, table, x) -> None:
            row = pyarrow.table({"id": [theirs], "vector": lists(x[:1])})
            lancedb.connect(tmp_path).open_table("vectors").add(row)
            super()._append(table, x)

    x = vectors(12, 6)
    LanceIndex(tmp_path).add(x)
    index, theirs = Late(tmp_path), 90
    assert index.add(x[:1]).search(x[:1], 10).ids[0, :8].sort().values.tolist() == [*range(7), 90]
    theirs = 91
    for use in (index.add, lambda x: index.search(x, 1)):
        with pytest.raises(ValueError, match="more than once"):
            use(x[:1])


def test_an_index_of_the_table_is_passed_over(tmp_path):
    x = vectors(4, 2000, d=8)
    LanceIndex(tmp_path).add(x)
    lancedb.connect(tmp_path).open_table("vectors").create_index(
        metric="dot", index_type="IVF_PQ", num_partitions=32, num_sub_vectors=2
    )
    found = LanceIndex(tmp_path).search(x[:20], 10)
    assert torch.equal(found.ids, Index("Flat").add(x).search(x[:20], 10).ids)


def test_every_comparison_is_paid_for(tmp_path):
    x = vectors(5, 50, d=4)
    index = LanceIndex(tmp_path).add(x)
    assert index.bytes == {"add": 2 * 50 * (4 * 4 + 8)}
    assert index.flops == {"add": 0}
    assert index.seconds > 0
    with FlopCounterMode(display=False) as counter:
        found = index.search(x[:3], 50)
    listed = 3 * 50
    assert found.work == {
        "flops": 2 * 4 * (3 * 50 + listed),
        "bytes": 16 * 3 * 50 + 2 * 28 * listed,
        "bytes_written": 28 * listed,
        "bytes_random": 28 * listed,
        "intops": 0,
    }
    assert counter.get_total_flops() == found.flops
    short = index.search(x[:3], 2).flops
    assert short % 8 == 0
    assert short >= 2 * 4 * 3 * (50 + 2)
    assert LanceIndex(tmp_path, metric="l2").search(x[:1], 50).flops == 3 * 4 * 100


def test_numbers_that_are_none_are_refused(tmp_path):
    x = vectors(6, 30)
    index = LanceIndex(tmp_path).add(x)
    bad = x.clone()
    bad[7, 3] = torch.nan
    with pytest.raises(ValueError, match="vector 7"):
        index.add(bad)
    assert len(index) == len(LanceIndex(tmp_path)) == 30
    found = index.search(bad[6:9], 4)
    assert found.mask.all(1).tolist() == [True, False, True]
    assert not found.mask[1].any()


def test_nothing_stored_and_nothing_asked(tmp_path):
    index = LanceIndex(tmp_path)
    assert len(index) == 0
    assert not index.search(torch.zeros(2, 3), 4).mask.any()
    assert len(index.add(torch.zeros(0, 3))) == 0
    assert index.add(torch.ones(1, 3)).search(torch.zeros(0, 3), 4).ids.shape == (0, 4)


def test_errors_say_what_is_wrong(tmp_path):
    x = vectors(7, 10, d=4)
    index = LanceIndex(tmp_path).add(x)
    with pytest.raises(ValueError, match="k >= 1"):
        index.search(x, 0)
    with pytest.raises(ValueError, match="3 dimensions, the table stores 4"):
        index.search(torch.ones(1, 3), 1)
    with pytest.raises(ValueError, match="3 dimensions, the table stores 4"):
        index.add(torch.ones(1, 3))
    good, ids = lists(x.numpy()), np.arange(10)
    wrong = {
        "name two of them": {"vector": good, "key": ids},
        "not a list of d floats": {"vector": ids, "id": ids},
        "no column of whole numbers": {"vector": good, "id": ids / 2},
        "more than once": {"vector": good, "id": ids // 2},
        "negative": {"vector": good, "id": ids - 1},
        "not finite": {"vector": lists(np.full((10, 4), np.inf, np.float32)), "id": ids},
    }
    for number, (message, rows) in enumerate(wrong.items()):
        folder = tmp_path / str(number)
        table(folder, rows)
        theirs = LanceIndex(folder, "theirs")
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                theirs.search(x, 1)


def test_without_the_extra_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match=r'pip install "mnemograph\[lancedb\]"'):
        LanceIndex(tmp_path)


def test_threads_get_the_same_answers(tmp_path):
    x = vectors(8, 300)
    index = LanceIndex(tmp_path).add(x)
    expected = index.search(x[:9], 5).ids
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda i: index.search(x[i], 5).ids, range(9))):
            assert torch.equal(found, expected[i])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_refused_before_it_can_hang(tmp_path):
    index = LanceIndex(tmp_path).add(torch.ones(2, 3))
    index.search(torch.ones(3), 1)

    def use() -> None:
        signal.alarm(60)
        with pytest.raises(RuntimeError, match="spawn"):
            index.search(torch.ones(3), 1)

    assert forked(use) == 0


def test_another_process_opens_it_for_itself(tmp_path):
    x = vectors(9, 40)
    index = LanceIndex(tmp_path, "other", "l2", vector="v", id="i").add(x)
    again = pickle.loads(pickle.dumps(index))
    assert repr(again) == repr(index)
    assert torch.equal(again.search(x[:3], 5).ids, index.search(x[:3], 5).ids)
