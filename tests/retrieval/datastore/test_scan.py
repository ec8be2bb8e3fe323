"""Searches of a store against a full scan one can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieval.datastore.changes
import retrieval.datastore.scan
from retrieval import Neighbors
from retrieval.datastore import Datastore
from retrieval.datastore.exclusion import Exclusion
from retrieval.datastore.ranking import Ranking, exact_scores
from retrieval.runtime import threads

HERE = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def corpus(seed, n, d=24, twins=0):
    """Keys with ``twins`` copies of one of them planted all over, in documents of twenty entries."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((n, d)).astype(np.float32)
    keys[rng.permutation(n)[:twins]] = keys[0]
    return keys, np.arange(n, dtype=np.int32), np.arange(n) // 20, np.arange(n) % 20


def build(path, columns, batches=1, **options):
    with Datastore.build(path, [[column[:1] for column in columns]], dtype="float32", **options) as store:
        for part in np.array_split(np.arange(1, len(columns[0])), batches):
            store.append([[column[part] for column in columns]])
    return Datastore.open(path, verify=False)


def naive(columns, queries, k, metric, exclude=None, visible_at=None, own=None, gone=()):
    """Every pair scored by itself, hidden ones left out, sorted."""
    keys, _, documents, positions = columns
    n = len(keys)
    rows = []
    for i, query in enumerate(queries):
        scores = exact_scores(query[None], np.zeros(n, np.int64), keys, np.arange(n), metric)
        hidden = np.isin(np.arange(n), gone)
        if exclude is not None:
            hidden |= documents == exclude[i]
        if visible_at is not None:
            late = positions >= visible_at[i]
            hidden |= late if own is None or own[i] < 0 else late & (documents == own[i])
        ranked = sorted((-scores[j], j) for j in np.flatnonzero(~hidden & np.isfinite(scores)))[:k]
        rows.append(([j for _, j in ranked], [-score for score, _ in ranked]))
    return rows


def same(found, expected):
    for row, (ids, scores) in enumerate(expected):
        n = int(found.mask[row].sum())
        assert found.ids[row, :n].tolist() == ids
        assert found.scores[row, :n].tolist() == pytest.approx(scores, abs=0)


@pytest.fixture(params=["ip", "l2"])
def metric(request):
    return request.param


@pytest.mark.parametrize("blocks", [(8192, 256, 1 << 16), (37, 5, 16)])
def test_segments_batches_and_threads_change_nothing(tmp_path, monkeypatch, metric, blocks):
    for name, value in zip(("_KEYS", "_QUERIES", "_PAIRS"), blocks, strict=True):
        monkeypatch.setattr(retrieval.datastore.scan, name, value)
    columns = corpus(0, 300, twins=60)
    queries = np.concatenate([corpus(1, 12)[0], columns[0][:12]])
    expected = naive(columns, queries, 30, metric)
    for batches in (1, 5):
        store = build(tmp_path / str(batches), columns, batches, metric=metric)
        assert len(store._generation.parts) == batches + 1
        whole = store.search(torch.from_numpy(queries), 30)
        same(whole, expected)
        with threads(2):
            assert torch.equal(store.search(torch.from_numpy(queries), 30).scores, whole.scores)
        for i in range(0, len(queries), 7):
            part = store.search(torch.from_numpy(queries[i : i + 7]), 30)
            assert torch.equal(part.ids, whole.ids[i : i + 7])
            assert torch.equal(part.scores, whole.scores[i : i + 7])


def test_scores_that_differ_by_rounding_alone_are_told_apart(tmp_path, metric):
    """Keys are one vector in other orders and the query is constant: a product of matrices gets them all wrong."""
    rng = np.random.default_rng(4)
    vector = rng.standard_normal(48).astype(np.float32)
    keys = np.stack([rng.permutation(vector) for _ in range(500)])
    columns = keys, *corpus(0, 500)[1:]
    queries = np.full((3, 48), 0.3, np.float32)
    store = build(tmp_path / "store", columns, 2, metric=metric)
    found = store.search(torch.from_numpy(queries), 20)
    assert 1 < len(found.scores.unique()) <= 20
    same(found, naive(columns, queries, 20, metric))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same entries, looked at one by one and through an index of 32 lists, all of them or two visited."""
    folder = tmp_path_factory.mktemp("stores")
    columns = corpus(2, 1200, d=8, twins=200)
    made = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(retrieval.datastore.changes, "_SMALL", 100)
    for name, factory in (("Flat", "Flat"), ("all lists", "IVF32,Flat"), ("two lists", "IVF32,Flat")):
        made[name] = build(folder / name, columns, 3, factory=factory)
        assert (made[name].info()["indexed_segments"] == 3) == (factory != "Flat")
        made[name].nprobe = 2 if name == "two lists" else 32
    patch.undo()
    return columns, made


RULES = st.fixed_dictionaries(
    {},
    optional={
        "exclude": st.sampled_from(["own", "none", "mixed"]),
        "visible_at": st.integers(0, 21),
        "own": st.booleans(),
    },
)


@HERE
@given(
    rules=RULES,
    at=st.lists(st.integers(0, 1199), min_size=1, max_size=4),
    k=st.sampled_from([1, 9, 250, 1300]),
)
def test_what_a_query_may_not_see_is_never_found_and_the_rest_is(stores, rules, at, k):
    columns, made = stores
    at = np.array(at)
    labels = columns[2][at]
    given_rules = {}
    if "exclude" in rules:
        given_rules["exclude"] = {
            "own": labels,
            "none": np.full(len(at), -1),
            "mixed": np.where(at % 2, labels, -1),
        }[rules["exclude"]]
    if "visible_at" in rules:
        given_rules["visible_at"] = np.full(len(at), rules["visible_at"])
        if rules.get("own"):
            given_rules["own"] = labels
    queries = columns[0][at]
    expected = naive(columns, queries, k, "ip", **given_rules)
    tensors = {name: torch.from_numpy(rule.astype(np.int64)) for name, rule in given_rules.items()}
    for name in ("Flat", "all lists"):
        found = made[name].search(torch.from_numpy(queries), k, **tensors)
        assert found.mask.sum(1).tolist() == [len(ids) for ids, _ in expected]
        same(found, expected)
    found = made["two lists"].search(torch.from_numpy(queries), k, **tensors)
    assert found.mask.sum(1).tolist() == [len(ids) for ids, _ in expected]
    for row, (ids, _) in enumerate(naive(columns, queries, 1200, "ip", **given_rules)):
        assert set(found.ids[row][found.mask[row]].tolist()) <= set(ids)


def test_planted_twins_of_the_excluded_document_do_not_fill_the_shortlist(stores, tmp_path):
    keys, values, documents, positions = (column.copy() for column in stores[0])
    keys[:1000] = keys[0] * (
        1 + np.arange(1000, 0, -1)[:, None] / 1000
    )  # nearer than all others, and no two alike
    documents[:1000] = 999
    columns = keys, values, documents, positions
    queries, banned = stores[0][0][:3], np.full(3, 999)
    store = Datastore.build(tmp_path / "store", [columns], dtype="float32", factory="IVF8,Flat")
    store.nprobe = 8
    assert store.info()["indexed_segments"] == 1
    found = store.search(torch.from_numpy(queries), 10, exclude=torch.from_numpy(banned))
    same(found, naive(columns, queries, 10, "ip", exclude=banned))
    free = store.search(torch.from_numpy(queries), 10)
    assert found.flops > free.flops > 0, "searching behind them is counted"


def test_a_query_that_is_no_number_has_no_neighbours(stores):
    columns, made = stores
    queries = torch.from_numpy(columns[0][:3].copy())
    for store in made.values():
        clean = store.search(queries, 4)
        for wrong in (torch.nan, torch.inf):
            broken = queries.clone()
            broken[1, 3] = wrong
            found = store.search(broken, 4)
            assert found.mask.sum(1).tolist() == [4, 0, 4]
            assert torch.equal(found.ids[::2], clean.ids[::2])


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("size", [5e18, 1e20, 2e37, 2.0**-60], ids=["5e18", "1e20", "2e37", "subnormal"])
def test_rules_hold_and_nothing_is_missed_where_products_overflow_or_vanish(
    tmp_path, monkeypatch, metric, factory, size
):
    # Of several blocks, the later ones come when there are neighbours already.
    monkeypatch.setattr(retrieval.datastore.scan, "_KEYS", 37)
    monkeypatch.setattr(retrieval.datastore.changes, "_SMALL", 100)
    rng = np.random.default_rng(7)
    small = size < 1
    keys = rng.integers(-3, 4, (300, 6)).astype(np.float32) * np.float32(2.0**-75 if small else 1)
    queries = rng.integers(-3, 4, (12, 6)).astype(np.float32) * np.float32(size)
    columns = keys, *corpus(0, 300)[1:]
    options = {"dtype": "float32", "metric": metric, "factory": factory, "nprobe": 4}
    store = Datastore.build(tmp_path / "store", [columns], **options)
    gone = range(0, 300, 3)
    store.delete(gone)
    exclude, seen = np.arange(12) % 15, np.full(12, 15)
    expected = naive(columns, queries, 20, metric, exclude=exclude, visible_at=seen, gone=gone)
    for batch in (12, 1):
        parts = [
            store.search(
                torch.from_numpy(queries[i : i + batch]),
                20,
                exclude=torch.from_numpy(exclude[i : i + batch]),
                visible_at=torch.from_numpy(seen[i : i + batch]),
            )
            for i in range(0, 12, batch)
        ]
        found = Neighbors.cat(parts)
        assert found.mask.sum(1).tolist() == [len(ids) for ids, _ in expected]
        same(found, expected)


def test_lengths_that_overflow_when_squared_leave_no_doubt(tmp_path, monkeypatch, metric):
    """As many neighbours as there are, of keys as long as a store takes."""
    rng = np.random.default_rng(8)
    keys = rng.standard_normal((200, 6))
    monkeypatch.setattr(retrieval.datastore.scan, "_KEYS", 37)
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True) * 9e17).astype(np.float32)
    queries = (rng.standard_normal((5, 6)) * 1e19).astype(np.float32)
    columns = keys, *corpus(0, 200)[1:]
    store = build(tmp_path / "store", columns, 2, metric=metric)
    expected = naive(columns, queries, 20, metric)
    found = store.search(torch.from_numpy(queries), 20)
    assert found.mask.sum(1).tolist() == [len(ids) for ids, _ in expected]
    same(found, expected)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-2, 2), st.integers(0, 9)), max_size=40),
    st.integers(1, 5),
)
def test_ranking_takes_candidates_in_any_order_and_more_than_once(candidates, k):
    scores = {(row, id_): score for row, score, id_ in candidates}
    rows, ids = (np.array([key[i] for key in scores], np.int64) for i in (0, 1))
    values = np.array(list(scores.values()), np.float32)
    best = Ranking(3, k)
    for part in (slice(0, 7), slice(3, None), slice(None, None, -1)):
        best.add(rows[part], values[part], ids[part])
    for row in range(3):
        ranked = sorted((-score, id_) for (r, id_), score in scores.items() if r == row)[:k]
        n = len(ranked)
        assert best.ids[row, :n].tolist() == [id_ for _, id_ in ranked]
        assert best.scores[row, :n].tolist() == [-score for score, _ in ranked]
    assert best.short.tolist() == [r for r in range(3) if sum(row == r for row, _ in scores) < k]


def test_rules_that_hide_nothing_cost_nothing():
    rules = Exclusion.of(torch.tensor([-1]), torch.tensor([2**63 - 1]), torch.tensor([-1]))
    assert not rules.by_document
    assert not rules.by_position
    assert rules.hidden(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64)) is None


def test_the_work_of_looking_at_every_key(tmp_path):
    columns = corpus(3, 100, d=16)
    with Datastore.build(tmp_path / "store", [columns]) as store:
        found = store.search(torch.from_numpy(columns[0][:2]), 100)
    pairs = 2 * 100 * 2 * 16
    assert found.flops == 2 * pairs, "all of them are candidates and get their score one by one"
    assert found.bytes_random == 4 * 16 * 200
    copied = 4 * 16 * 100
    assert found.bytes_written == copied + 4 * 200 + 4 * 16 * 200
