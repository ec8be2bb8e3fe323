from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrieval.neighbors import Neighbors
from retrieval.rolling import RollingMemory
from retrieval.rolling.search import anywhere

BACKENDS = ("dense", "exact", "ivf")
ROWS, HEADS, CAPACITY, D = 3, 2, 12, 4


def memory(backend: str = "dense", capacity: int = CAPACITY, **options) -> RollingMemory:
    """With inverted lists all of which are looked into."""
    lists = {"nlist": 4, "nprobe": 4, "retrain": 7} if backend == "ivf" else {}
    return RollingMemory(ROWS, HEADS, capacity, D, 2, **{"backend": backend, **lists, **options})


def entries(seed: int, n: int, batch: int = ROWS, *, whole: bool = True) -> tuple[Tensor, Tensor]:
    """Keys of small whole numbers, so that scores are exact and tie often; values that are never the same."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, HEADS, n, D, generator=draw)
    values = torch.randn(batch, HEADS, n, 2, generator=draw)
    return (keys.round() if whole else keys), values


class Lists:
    """The same memory as plain Python lists."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.kept: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in range(ROWS)]
        self.counts = [0] * ROWS

    def add(self, keys: Tensor, values: Tensor, rows: list[int]) -> None:
        for i, row in enumerate(rows):
            for j in range(keys.shape[2]):
                self.kept[row].append((self.counts[row], keys[i, :, j], values[i, :, j]))
                self.counts[row] += 1
            self.kept[row] = self.kept[row][-self.capacity :]

    def reset(self, rows: list[int]) -> None:
        for row in rows:
            self.kept[row] = []

    def search(self, queries: Tensor, k: int, rows: list[int]) -> list[list[tuple[float, int]]]:
        """Score and index of the best, query by query."""
        found = []
        for i, row in enumerate(rows):
            for head in range(HEADS):
                for query in queries[i, head]:
                    scored = [(-float(query @ key[head]), index) for index, key, _ in self.kept[row]]
                    found.append([(-score, index) for score, index in sorted(scored)[:k]])
        return found

    def value(self, row: int, head: int, index: int) -> Tensor:
        return next(value[head] for at, _, value in self.kept[row] if at == index)


def compare(real: RollingMemory, naive: Lists, queries: Tensor, k: int, rows: list[int]) -> None:
    """Ids, scores, mask, and the value that every neighbour brings."""
    at = torch.tensor(rows, dtype=torch.int64)
    found = real.search(queries, k, rows=at)
    past = real.gather(found, rows=at)
    assert torch.equal(past.mask, found.mask)
    time = queries.shape[2]
    for n, expected in enumerate(naive.search(queries, k, rows)):
        i, head, t = n // (HEADS * time), n // time % HEADS, n % time
        place = i, head, t
        assert found.mask[place].tolist() == [j < len(expected) for j in range(k)]
        for j, (score, index) in enumerate(expected):
            assert (float(found.scores[place][j]), int(found.ids[place][j])) == (score, index)
            assert torch.equal(past.values[place][j], naive.value(rows[i], head, index))
        assert not past.values[place][len(expected) :].any()
        assert not found.ids[place][len(expected) :].any()


subsets = st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1, max_size=ROWS)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), subsets, st.integers(0, 3 * CAPACITY)),
        st.tuples(st.just("add"), subsets, st.integers(1, 4)),
        st.tuples(st.just("reset"), subsets, st.just(0)),
        st.tuples(st.just("search"), subsets, st.integers(1, CAPACITY + 3)),
        st.tuples(st.sampled_from(["reload", "copy", "save"]), st.just([0]), st.just(0)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("backend", BACKENDS)
@given(operations=operations, capacity=st.sampled_from([1, 5, CAPACITY]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_a_list_of_the_latest_entries(tmp_path_factory, backend, operations, capacity, seed):
    lists = {"nlist": min(4, capacity)}
    real, naive = memory(backend, capacity, **lists), Lists(capacity)
    for step, (what, rows, n) in enumerate([*operations, ("search", [2, 0, 1], 5)]):
        if what == "add":
            keys, values = entries(100 * seed + step, n, len(rows))
            real.add(keys, values, rows=torch.tensor(rows))
            naive.add(keys, values, rows)
        elif what == "reset":
            real.reset(torch.tensor([row in rows for row in range(ROWS)]))
            naive.reset(rows)
        elif what == "reload":
            state = real.state_dict()
            real = memory(backend, capacity, **lists)
            real.load_state_dict(state)
        elif what == "copy":
            real = copy.deepcopy(real)
        elif what == "save":
            folder = tmp_path_factory.mktemp("memory") / "m"
            real.save(folder)
            real = RollingMemory.open(folder)
        else:
            compare(real, naive, entries(100 * seed + step, 3, len(rows))[0], n, rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stored_key_returns_its_own_value(backend):
    real = memory(backend, 100, nlist=10, nprobe=3) if backend == "ivf" else memory(backend, 100)
    for step in range(10):
        rows = torch.tensor([2, 0]) if step % 3 == 1 else torch.arange(ROWS)
        keys, values = entries(step, 32, len(rows), whole=False)
        keys = torch.nn.functional.normalize(keys, dim=-1)
        real.add(keys, values, rows=rows)
        past = real.gather(real.search(keys, 1, rows=rows), rows=rows)
        assert past.mask.all()
        assert torch.equal(past.keys[..., 0, :], keys)
        assert torch.equal(past.values[..., 0, :], values)


def same(one: Neighbors, two: Neighbors) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("scores", "ids", "mask"))


@pytest.mark.parametrize("whole", [True, False])
def test_backends_agree_bit_by_bit(whole):
    made = [memory(backend, 700, nlist=20, nprobe=20) for backend in BACKENDS]
    for step in range(5):
        keys, values = entries(step, 300, whole=whole)
        for each in made:
            if step == 3:
                each.reset(torch.tensor([1]))
            each.add(keys, values)
        queries = entries(50 + step, 40, whole=whole)[0]
        found = [each.search(queries, 9) for each in made]
        assert same(found[0], found[1])
        assert same(found[0], found[2])
        assert found[0].mask.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_batch_does_not_matter(backend, whole):
    real = memory(backend, 600, nlist=20, nprobe=3)
    for step in range(3):
        real.add(*entries(step, 300, whole=whole))
    queries = entries(9, 130, whole=whole)[0]
    together = real.search(queries, 7)
    for t in (0, 1, 128):
        alone = real.search(queries[2:, :, t : t + 1], 7, rows=torch.tensor([2]))
        assert torch.equal(alone.ids, together.ids[2:, :, t : t + 1])
        assert torch.equal(alone.scores, together.scores[2:, :, t : t + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_equal_keys_come_oldest_first(backend):
    real = memory(backend, 500, nlist=3, nprobe=1)
    ones = torch.ones(ROWS, HEADS, 300, D)
    for _ in range(3):
        real.add(ones, ones[..., :2])
    found = real.search(ones[:, :, :2], 5)
    assert found.ids.eq(torch.arange(400, 405)).all()


def test_inverted_lists_find_most_and_follow_what_is_stored():
    draw = torch.Generator().manual_seed(0)
    real, truth = (
        RollingMemory(1, 1, 2000, 16, 1, backend=backend, nlist=40, nprobe=8) for backend in ("ivf", "dense")
    )
    centres = torch.randn(50, 16, generator=draw)
    for step in range(30):
        centres += 0.1 * torch.randn(50, 16, generator=draw)  # an encoder that learns
        keys = centres[torch.randint(50, (200,), generator=draw)] + 0.3 * torch.randn(200, 16, generator=draw)
        real.add(keys[None, None], keys[None, None, :, :1])
        truth.add(keys[None, None], keys[None, None, :, :1])
        one, two = real.search(keys[None, None], 10), truth.search(keys[None, None], 10)
        assert (one.scores >= two.scores[..., -1:]).float().mean() > 0.9, step
        assert (one.ids > 200 * (step + 1) - 2001).all()
    assert one.flops < 0.5 * two.flops
    assert real.work["train"].flops > 0 < real.work["add"].flops


def test_all_rows_empty_or_short_are_masked():
    for backend in BACKENDS:
        real = memory(backend)
        queries = entries(0, 3)[0]
        assert not real.search(queries, 4).mask.any()
        assert real.gather(torch.zeros(ROWS, HEADS, 1, 2, dtype=torch.int64)).mask.sum() == 0
        real.add(*entries(1, 2, 1), rows=torch.tensor([1]))
        mask = real.search(queries, 4).mask
        assert mask[1].sum(-1).eq(2).all()
        assert mask.sum() == mask[1].sum()
        assert real.search(queries[:0], 4).ids.shape == (0, HEADS, 3, 4)
        assert real.search(queries[:, :, :0], 4).ids.shape == (ROWS, HEADS, 0, 4)


def test_what_is_overwritten_or_reset_since_the_search_is_masked():
    real = memory()
    keys, values = entries(0, CAPACITY)
    real.add(keys, values)
    found = real.search(keys, 1)
    real.add(*entries(1, 3))
    assert torch.equal(real.gather(found).mask, found.mask & (found.ids >= 3))
    real.reset(torch.tensor([0, 2]))
    assert not real.gather(found).mask[[0, 2]].any()
    real.add(*entries(1, CAPACITY))  # the slots are full again, the names are other ones
    assert not real.gather(found).mask.any()
    assert not real.gather(-found.ids - 1).mask.any()


def test_queries_that_are_no_numbers_find_nothing():
    for backend in BACKENDS:
        real = memory(backend)
        real.add(*entries(0, 9))
        queries = entries(1, 3)[0]
        whole = real.search(queries, 2)
        queries[0, 1, 2, 3], queries[2, 0, 0, 0] = torch.nan, torch.inf
        found = real.search(queries, 2)
        strange = ~queries.isfinite().all(-1)
        assert not found.mask[strange].any()
        assert torch.equal(found.ids[~strange], whole.ids[~strange])


@pytest.mark.parametrize("size", [1e30, 1e-30, 3e38])
def test_numbers_at_the_ends_of_the_scale(size):
    keys, values = entries(0, 9)
    keys[0, 0, 3] = size
    results = []
    for backend in BACKENDS:
        real = memory(backend)
        real.add(keys, values)
        results.append(real.search(entries(1, 5)[0] * size, 3))
        assert results[-1].scores.isfinite().all()
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_stored_of_what_is_not_finite(backend):
    real = memory(backend)
    real.add(*entries(0, 9))
    before = real.state_dict()
    for name, x in (("key", 0), ("value", 1)):
        pair = entries(1, 30, 2)
        pair[x][1, 0, 27, 1] = torch.nan
        with pytest.raises(ValueError, match=f"{name} at row 2, head 0, position 27 is not finite; nothing"):
            real.add(*pair, rows=torch.tensor([0, 2]))
    after = real.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], Tensor))
    half = RollingMemory(1, 1, 4, 2, 2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        half.add(torch.full((1, 1, 1, 2), 1e6), torch.zeros(1, 1, 1, 2))


def test_wrong_calls_are_named():
    real = memory()
    keys, values = entries(0, 2)
    calls = {
        r"keys need shape \[batch <= 3, heads = 2, n, 4\], got \(3, 2, 2, 3\)": (keys[..., 1:], values, None),
        r"values need shape .*got \(3, 2, 2, 1\)": (keys, values[..., 1:], None),
        "agree in batch, heads and n": (keys, values[:, :, 1:], None),
        "floating-point": (keys.long(), values, None),
        "row 3 of a memory of 3": (keys, values, torch.tensor([0, 1, 3])),
        "named twice": (keys, values, torch.tensor([0, 1, 1])),
        "2 rows are named for a batch of 3": (keys, values, torch.tensor([True, False, True])),
        "mask of rows needs shape": (keys, values, torch.tensor([True, False])),
    }
    from jaxtyping import TypeCheckError

    for match, (k, v, rows) in calls.items():
        with pytest.raises((ValueError, TypeCheckError)) as caught:
            real.add(k, v, rows=rows)
        if not isinstance(caught.value, TypeCheckError):
            caught.match(match)
    assert len(real) == 0
    for k in (0, -1):
        with pytest.raises(ValueError, match="k >= 1"):
            real.search(keys, k)
    for options, match in (
        ({"capacity": 0}, "capacity >= 1"),
        ({"nlist": 13}, "nlist <= capacity"),
        ({"dtype": torch.float64}, "dtype"),
        ({"backend": "ivf", "device": "meta"}, "works on the CPU"),
    ):
        with pytest.raises(ValueError, match=match):
            memory(**options)


def test_auto_goes_by_capacity():
    assert RollingMemory(1, 1, 2048, 8, 8).backend == "dense"
    assert RollingMemory(1, 1, RollingMemory.crossover + 1, 8, 8).backend == "ivf"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_stored_and_scored_in_full(backend, dtype, tmp_path):
    half, full = memory(backend, dtype=dtype), memory("dense")
    keys, values = entries(0, 30, whole=False)
    half.add(keys, values)
    full.add(keys.to(dtype).float(), values.to(dtype).float())
    queries = entries(1, 5, whole=False)[0].to(dtype)
    one, two = half.search(queries, 3), full.search(queries.float(), 3)
    assert same(one, two)
    assert half.gather(one).keys.dtype == dtype
    assert torch.equal(half.gather(one).values.float(), full.gather(two).values)
    half.save(tmp_path / "m")
    assert same(RollingMemory.open(tmp_path / "m").search(queries, 3), one)


def test_what_searches_off_the_cpu_finds_the_same():
    real = memory("dense", 40)
    everyone = [(row, head) for row in range(ROWS) for head in range(HEADS)]
    for step in range(4):
        real.add(*entries(step, 15))
        queries = entries(9 + step, 5)[0]
        found, there = real.search(queries, 20), anywhere(real._ring, queries.flatten(0, 1), everyone, 20)
        ids, scores = (torch.from_numpy(x).view(found.ids.shape) for x in (there.ids, there.scores))
        assert torch.equal(ids >= 0, found.mask)
        assert torch.equal(ids[found.mask], found.ids[found.mask])
        assert torch.equal(scores[found.mask], found.scores[found.mask])
    assert real.to("cpu") is real


@pytest.mark.parametrize("late", [False, True])
def test_keys_too_long_for_lists_are_all_compared(late):
    """FAISS would end the process where it makes clusters of them."""
    generator = torch.Generator().manual_seed(0)
    memories = [RollingMemory(1, 1, 64, 8, 2, backend=b, nlist=4, nprobe=1) for b in ("ivf", "exact")]
    for step in range(6):
        keys = torch.randn(1, 1, 40, 8, generator=generator)
        if step >= 3 * late:
            keys[0, 0, 7] *= 3e37
        for memory in memories:
            memory.add(keys, keys[..., :2])
    queries = torch.randn(1, 1, 5, 8, generator=generator)
    found = [memory.search(queries, 4) for memory in memories]
    assert torch.equal(found[0].ids, found[1].ids)
    assert torch.equal(found[0].scores, found[1].scores)
