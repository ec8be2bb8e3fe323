from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import Ledger
from retrieval import Index, Neighbors
from retrieval.distributed.sharding import ShardedSearch
from retrieval.exact import exact_search
from tests.retrieval.distributed.worlds import Failed, World, refused


class Naive:
    """A store in the fewest lines, exact where arithmetic is."""

    def __init__(self, keys: torch.Tensor, metric: str) -> None:
        self.keys, self.metric = keys, metric

    def __len__(self) -> int:
        return len(self.keys)

    def search(self, queries: torch.Tensor, k: int) -> Neighbors:
        return exact_search(queries, self.keys, k, metric=self.metric)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(3, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


@dataclass
class Case:
    """Shards and queries of every rank."""

    shards: list[torch.Tensor]
    queries: list[torch.Tensor]
    k: int
    factory: str = ""
    metric: str = "ip"
    ids: str = "position"
    sample: torch.Tensor | None = None
    options: dict = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        return len(self.shards)

    def store(self, keys: torch.Tensor) -> Naive | Index:
        if not self.factory:
            return Naive(keys, self.metric)
        index = Index(self.factory, self.metric, **self.options)
        return index.train(keys if self.sample is None else self.sample).add(keys)

    def one_process(self, rank: int) -> Neighbors:
        return self.store(torch.cat(self.shards)).search(self.queries[rank], self.k)

    def wide(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids as positions, of those that name a rank."""
        if self.ids == "position":
            return ids
        first = torch.tensor([0] + [len(shard) for shard in self.shards[:-1]]).cumsum(0)
        return first[ids >> 48] + (ids & (2**48 - 1))


def ask(group: dist.ProcessGroup, case: Case) -> Neighbors:
    rank = dist.get_rank(group)
    store = ShardedSearch(case.store(case.shards[rank]), group=group, ids=case.ids)
    return store.search(case.queries[rank], case.k)


def same(case: Case, answers: list[Neighbors]) -> None:
    for rank, found in enumerate(answers):
        assert isinstance(found, Neighbors), found
        one = case.one_process(rank)
        assert torch.equal(found.mask, one.mask)
        assert torch.equal(found.scores, one.scores)
        assert torch.equal(torch.where(found.mask, case.wide(found.ids), 0), one.ids)


def integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Vectors with many equal scores, all of which are exact."""
    return torch.randint(-2, 3, shape, generator=generator).float()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = draw(st.sampled_from([2, 3]))
    d = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.integers(0, 12), min_size=ranks, max_size=ranks))
    asked = draw(st.lists(st.integers(0, 5), min_size=ranks, max_size=ranks))
    return Case(
        shards=[integers(generator, n, d) for n in sizes],
        queries=[integers(generator, n, d) for n in asked],
        k=draw(st.integers(1, 40)),
        metric=draw(st.sampled_from(["ip", "l2"])),
        ids=draw(st.sampled_from(["position", "rank"])),
    )


@given(case=cases())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_shards_answer_as_one_process(world, case):
    same(case, world(case.ranks, ask, case))


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,SQ8"])
@pytest.mark.parametrize("sizes", [(230, 70), (150, 0, 3)])
def test_indexes_answer_bit_for_bit(world, factory, metric, sizes):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(sum(sizes), 24, generator=generator)
    case = Case(
        shards=list(keys.split(sizes)),
        queries=[torch.randn(n, 24, generator=generator) for n in (5, 0, 33)[: len(sizes)]],
        k=20,
        factory=factory,
        metric=metric,
        sample=torch.randn(400, 24, generator=generator),
        options={"nprobe": 2},
    )
    same(case, world(case.ranks, ask, case))


def test_equal_entries_of_all_shards_come_in_the_order_of_their_ids(world):
    one = torch.ones(1, 2)
    case = Case(
        [one.repeat(2, 1), torch.zeros(0, 2), one.repeat(3, 1)], [one, one.view(1, 1, 2), one[0]], k=9
    )
    answers = world(3, ask, case)
    assert [found.ids.shape for found in answers] == [(1, 9), (1, 1, 9), (9,)]
    for found in answers:
        assert found.ids.flatten().tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
        assert found.mask.flatten().tolist() == [True] * 5 + [False] * 4


class Extremes:
    """Minus infinity is a score like any other, and comes before no neighbour at all."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return 2

    def search(self, queries: torch.Tensor, k: int) -> Neighbors:
        ids = torch.where(torch.arange(2) < self.n, torch.arange(2), -1).expand(len(queries), 2)
        return Neighbors.of(torch.full(ids.shape, -torch.inf)[:, :k], ids[:, :k])


def extremes(group: dist.ProcessGroup) -> Neighbors:
    return ShardedSearch(Extremes(dist.get_rank(group)), group=group).search(torch.zeros(1, 2), 4)


def test_minus_infinity_is_found_behind_what_is_missing(world):
    for found in world(3, extremes):
        assert found.ids.tolist() == [[2, 4, 5, 0]]
        assert found.mask.tolist() == [[True, True, True, False]]


def disagree(group: dist.ProcessGroup, which: str) -> list[Failed | Neighbors | None]:
    """What comes of a call that does not fit, and of a right one after it."""
    last = dist.get_rank(group) == dist.get_world_size(group) - 1
    keys, queries = torch.ones(4, 3), torch.ones(2, 3)
    store = ShardedSearch(Naive(keys, "ip"), group=group)
    other = ShardedSearch(Naive(keys, "ip"), group=group)

    def make(metric: str, ids: str) -> None:
        ShardedSearch(Naive(keys, metric), group=group, ids=ids)  # type: ignore[arg-type]

    calls = {
        "k": lambda: store.search(queries, 5 if last else 4),
        "k < 1": lambda: store.search(queries, 0 if last else 4),
        "dimension": lambda: store.search(torch.ones(0, 2) if last else queries, 4),
        "type": lambda: store.search(queries.long() if last else queries, 4),
        "no dimension": lambda: store.search(torch.ones(2, 0) if last else queries, 4),
        "store": lambda: (store if last else other).search(queries, 4),
        "call": lambda: store.renumber() if last else store.search(queries, 4),
        "metric": lambda: make("l2" if last else "ip", "rank"),
        "ids": lambda: make("ip", "rank" if last else "position"),
        "ids unknown": lambda: make("ip", "both"),
        "shard": lambda: store.search(torch.ones(2, 4), 4),  # of other dimensions than are stored
    }
    return [refused(calls[which]), store.search(queries, 12)]


REFUSALS = {
    "k": ("ValueError", "ranks disagree on k: rank 0 has 4, rank 2 has 5"),
    "k < 1": ("RankError", "rank 2 failed, so this one stopped too: ValueError: search needs k >= 1, got 0"),
    "dimension": ("ValueError", "ranks disagree on dimension: rank 0 has 3, rank 2 has 2"),
    "type": ("RankError", "rank 2 failed.*floating-point queries"),
    "no dimension": ("RankError", "rank 2 failed.*floating-point queries"),
    "store": ("ValueError", "ranks ask different stores"),
    "call": ("ValueError", "ranks disagree on call: rank 0 has 'search', rank 2 has 'renumber'"),
    "metric": ("ValueError", "ranks disagree on metric: rank 0 has 'ip', rank 2 has 'l2'"),
    "ids": ("ValueError", "ranks disagree on ids"),
    "ids unknown": ("ValueError", "ids must be 'position' or 'rank'"),
    "shard": ("RuntimeError", "shapes cannot be multiplied"),
}


@pytest.mark.parametrize("which", REFUSALS)
def test_ranks_that_disagree_are_refused_on_every_rank_and_go_on(world, which):
    kind, message = REFUSALS[which]
    for rank, (failed, found) in enumerate(world(3, disagree, which)):
        assert isinstance(failed, Failed), f"rank {rank} was not told"
        if rank < 2:
            assert failed.kind == kind
            assert re.search(message, failed.message), failed.message
        assert found.ids.tolist() == [list(range(12))] * 2


class Foreign(Naive):
    """Its ids are no positions, or it does not answer for ``k``."""

    def __init__(self, wrong: str) -> None:
        super().__init__(torch.ones(2, 2), "ip")
        self.wrong = wrong

    def search(self, queries: torch.Tensor, k: int) -> Neighbors:
        found = super().search(queries, k + (self.wrong == "k"))
        return Neighbors(found.scores, found.ids + 7, found.mask)


def foreign(group: dist.ProcessGroup, wrong: str, ids: str) -> Failed | list:
    store = ShardedSearch(Foreign(wrong), group=group, ids=ids)  # type: ignore[arg-type]
    answers: list[Neighbors] = []
    failed = refused(lambda: answers.append(store.search(torch.ones(1, 2), 2)))
    return failed or [answers[0].ids.tolist(), [part.tolist() for part in store.locate(answers[0].ids)]]


def test_answers_of_a_shard_are_checked(world):
    for failed in world(2, foreign, "ids", "position"):
        assert "ids end at 2" in failed.message
        assert "needs ids='rank'" in failed.message
    for failed in world(2, foreign, "k", "position"):
        assert "answered 2 queries for 2 neighbours by (2, 3)" in failed.message
    for ids, located in world(2, foreign, "ids", "rank"):
        assert ids == [[7, 8]]
        assert located == [[[0, 0]], [[7, 8]]]


def grow(group: dist.ProcessGroup, ids: str) -> list:
    """Rank 0 stores one more between two searches."""
    shard = Index("Flat").add(torch.eye(3)[: 2 + dist.get_rank(group)])
    store = ShardedSearch(shard, group=group, ids=ids)  # type: ignore[arg-type]
    query = torch.tensor([[1.0, 2.0, 3.0]])
    before = store.search(query, 9)
    if dist.get_rank(group) == 0:
        shard.add(torch.ones(1, 3))
    failed = refused(store.search, query, 9)
    store.renumber()
    return [before, failed, store.search(query, 9), store.lengths, len(store)]


def test_a_shard_that_has_grown_is_refused_until_ids_are_given_out_anew(world):
    for before, failed, after, lengths, total in world(2, grow, "position"):
        assert before.ids[before.mask].tolist() == [4, 1, 3, 0, 2]
        assert "rank 0 stores 3 entries, and had 2" in failed.message
        assert "renumber()" in failed.message
        assert after.ids[after.mask].tolist() == [2, 5, 1, 4, 0, 3]
        assert (lengths, total) == ([3, 3], 6)


def test_ids_that_name_a_rank_stay_valid_when_shards_grow(world):
    for before, failed, after, *_ in world(2, grow, "rank"):
        assert failed is None
        far = 1 << 48
        assert before.ids[before.mask].tolist() == [far + 2, 1, far + 1, 0, far]
        assert after.ids[after.mask].tolist() == [2, far + 2, 1, far + 1, 0, far]


def bill(group: dist.ProcessGroup, case: Case) -> dict[str, int]:
    rank = dist.get_rank(group)
    store = ShardedSearch(case.store(case.shards[rank]), group=group)
    with Ledger() as ledger, FlopCounterMode(display=False) as counter:
        found = store.search(case.queries[rank], case.k)
    watched = counter.get_flop_counts()["Global"].get(torch.ops.mnemograph.search, 0)
    assert ledger.by_operator.get("mnemograph.search", 0) == watched
    assert ledger.bytes_by_operator["c10d.alltoall_base"] > 0
    return found.work | {"watched": watched, "sent": store.bytes_sent}


def test_work_adds_up_to_what_ledgers_have_seen(world):
    generator = torch.Generator().manual_seed(1)
    sizes, asked, d, k = (40, 9, 100), (7, 0, 3), 8, 12
    case = Case(
        [torch.randn(n, d, generator=generator) for n in sizes],
        [torch.randn(n, d, generator=generator) for n in asked],
        k,
        factory="IVF2,Flat",
        sample=torch.randn(100, d, generator=generator),
    )
    bills = world(3, bill, case)
    assert not any(isinstance(each, Failed) for each in bills), bills
    assert sum(each["flops"] for each in bills) == sum(each["watched"] for each in bills) > 0
    assert all(each["watched"] > 0 for each in bills)
    assert bills[1]["flops"] == bills[1]["bytes"] == 0
    case.factory = ""  # exact: of one query it takes what it takes of another
    one, two, three = world(3, bill, case)
    assert one["flops"] == 2 * 7 * sum(sizes) * d == case.one_process(0).flops
    assert [each["sent"] for each in (one, two, three)] == [
        2 * 4096 + 2 * 4 * 7 * d + 12 * 3 * 12,
        2 * 4096 + 12 * (7 + 3) * 9,
        2 * 4096 + 2 * 4 * 3 * d + 12 * 7 * 12,
    ]
    assert one["bytes_written"] >= 13 * 7 * k


def located(group: dist.ProcessGroup, ids: str) -> list:
    rank = dist.get_rank(group)
    keys = torch.arange(3.0).view(3, 1)[: (2, 0, 3)[rank]]
    store = ShardedSearch(Naive(keys, "ip"), group=group, ids=ids)  # type: ignore[arg-type]
    found = store.search(torch.ones(1, 1), 5)
    ranks, local = store.locate(found.ids)
    return [found.scores.tolist(), ranks.tolist(), local.tolist(), refused(store.locate, torch.tensor([-1]))]


@pytest.mark.parametrize("ids", ["position", "rank"])
def test_an_entry_is_located_where_it_is(world, ids):
    for scores, ranks, local, failed in world(3, located, ids):
        assert scores == [[2, 1, 1, 0, 0]]
        assert ranks == [[2, 0, 2, 0, 2]]
        assert local == [[2, 1, 1, 0, 0]]
        assert failed.kind == "IndexError"


def test_without_a_group_this_is_one_rank():
    index = Index("Flat").add(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    store, queries = ShardedSearch(index), torch.eye(4)
    assert torch.equal(store.search(queries, 3).ids, index.search(queries, 3).ids)
    assert store.bytes_sent == 0
    with pytest.raises(ValueError, match="k >= 1"):
        store.search(queries, 0)


def compiled(group: dist.ProcessGroup) -> list[float]:
    keys = torch.randn(20, 4, generator=torch.Generator().manual_seed(dist.get_rank(group)))
    store, linear = ShardedSearch(Naive(keys, "ip"), group=group), torch.nn.Linear(4, 4)

    def model(x: torch.Tensor) -> torch.Tensor:
        return (linear(x) * store.search(linear(x), 4).scores).sum()

    x = torch.ones(2, 4)
    fast = torch.compile(model, backend="eager")
    loss = fast(x)
    loss.backward()
    return [float(model(x)), float(loss), float(fast(x))]


def test_inside_a_compiled_model(world):
    for plain, first, second in world(2, compiled):
        assert plain == first == second
