from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from retrieval import Index, RandomSource, RollingMemory, search
from retrieval.enrollment import enroll
from retrieval.rolling.memory import Backend
from retrieval.search import Searchable, check_queries, run_search
from tests.retrieval import stores
from tests.retrieval.crashes import forked


class Model(torch.nn.Module):
    def __init__(self, index: Index) -> None:
        super().__init__()
        self.index = index
        self.linear = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.index.search(self.linear(x), 2).scores.mean()


def test_a_search_inside_a_model_is_counted_with_it():
    index = Index("Flat").add(torch.randn(100, 8))
    with FlopCounterMode(display=False) as counter:
        Model(index)(torch.randn(5, 8)).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    # Ten of each query's are scored twice.
    assert counts[torch.ops.mnemograph.search] == 2 * 5 * (100 + 2 + 8) * 8
    assert counts[torch.ops.aten.mm] == 3 * 2 * 5 * 8 * 8


def test_the_operator_passes_torchs_own_checks():
    index = Index("Flat").add(torch.randn(100, 8))
    torch.library.opcheck(
        torch.ops.mnemograph.search.default,
        ([torch.randn(5, 8)], enroll(index), 3),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_meta_tensors_have_shapes_but_no_price():
    number = enroll(Index("Flat").add(torch.randn(100, 8)))
    queries = torch.randn(2, 5, 8, device="meta")
    scores, ids, mask = torch.ops.mnemograph.search([queries], number, 3)
    assert scores.shape == ids.shape == mask.shape == (2, 5, 3)
    with (
        pytest.raises(NotImplementedError, match="depends on the stored data"),
        FlopCounterMode(display=False),
    ):
        torch.ops.mnemograph.search([queries], number, 3)


def test_a_store_lives_as_long_as_its_owner():
    index = Index("Flat").add(torch.randn(10, 8))
    number = enroll(index)
    del index
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists"):
        torch.ops.mnemograph.search([torch.randn(1, 8)], number, 1)


def test_fake_tensors_have_no_price_and_no_work():
    index = Index("Flat").add(torch.randn(100, 8))
    index.search(torch.randn(4, 8), 3)
    with FakeTensorMode() as mode:
        queries = mode.from_tensor(torch.randn(1000, 8))
        for _ in range(2):  # the second time torch remembers the shapes
            index_work = index.search(queries, 3).work
            assert set(index_work.values()) == {0}
            index.search(torch.randn(4, 8), 3)
        with (
            pytest.raises(NotImplementedError, match="depends on the stored"),
            FlopCounterMode(display=False),
        ):
            index.search(queries, 3)
    assert index.search(torch.empty(1000, 8, device="meta"), 3).flops == 0


def test_threads_that_share_a_store_get_the_price_of_their_own_calls():
    index = Index("Flat").add(torch.randn(100, 8))

    def price(n: int) -> tuple[int, int, int]:
        with FlopCounterMode(display=False) as counter:
            found = index.search(torch.randn(n, 8), 3)
        return found.flops, counter.get_total_flops(), 2 * n * (100 + (3 + 8) * (n > 3)) * 8

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(price, list(range(1, 40)) * 5):
                assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(before)


def test_a_price_is_that_of_the_call_just_made():
    index, other = Index("Flat").add(torch.randn(10, 8)), Index("Flat").add(torch.randn(10, 8))
    index.search(torch.randn(1, 8), 1)
    price = flop_registry[torch.ops.mnemograph.search]
    with pytest.raises(NotImplementedError, match="right after one"):
        price([torch.randn(1, 8)], enroll(other), 1)


@pytest.mark.parametrize("queries", [torch.ones(2, 4, dtype=torch.int64), torch.tensor(1.0)])
def test_what_is_no_batch_of_vectors_is_refused(queries):
    with pytest.raises(ValueError, match="floating-point queries"):
        check_queries(queries, 3)
    with pytest.raises(ValueError, match="k >= 1"):
        check_queries(torch.ones(2, 4), 0)


def test_a_store_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match=r"neighbors\(inputs, k\)"):
        run_search(Searchable(), [torch.ones(1, 2)], 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_while_another_thread_counts_does_not_wait_for_it():
    index = Index("Flat").add(torch.randn(10, 8))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with search._adding:
            held.set()
            done.wait()

    def use() -> None:
        signal.alarm(20)
        index.search(torch.randn(1, 8), 1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        held.wait()
        try:
            assert forked(use) == 0
        finally:
            done.set()


# In a process of its own, where no annotation is checked: the checker itself cannot be compiled.
COMPILING = """
import copy, sys, torch
from retrieval import Datastore, Index, RandomSource, RollingMemory
from tests.retrieval import stores
x, tokens, y = torch.randn(4, 8), torch.randint(1, 5, (2, 6)), torch.randn(2, 2, 3, 8)
index = Index("Flat").add(torch.randn(100, 8))
memory = RollingMemory(2, 2, 16, 8, 8)
memory.add(y, y)
for store, asked in (
    (index, x), (Datastore.build(sys.argv[1], [(x, torch.arange(4))]), x),
    (RandomSource(stores.documents(1)), tokens), (memory, y),
):
    def read(asked):
        found = store.search(asked * 1, 3)
        return found.scores, found.ids, found.mask
    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert all(map(torch.equal, compiled(asked), read(asked))), store
class Model(torch.nn.Module):
    def __init__(self, store):
        super().__init__()
        self.store = store
    def forward(self, x):
        return self.store.search(x, 3).ids
for strict in (False, True):
    exported = torch.export.export(Model(index), (x,), strict=strict).module()
    assert torch.equal(exported(x), index.search(x, 3).ids), strict
model = Model(index)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
compiled(x)
model.store = copy.deepcopy(index).add(10 * torch.randn(100, 8))  # as it is now, not as it was compiled
assert torch.equal(compiled(x), model.store.search(x, 3).ids)
def step(x):
    found = memory.search(x, 3).scores.sum()
    memory.add(x, x)
    return found
same = copy.deepcopy(memory)
compiled = torch.compile(step, backend="aot_eager")  # an add breaks the graph, and that is all
for _ in range(3):
    z = torch.randn(2, 2, 3, 8)
    assert compiled(z) == same.search(z, 3).scores.sum()
    same.add(z, z)
"""


def test_a_search_breaks_no_compiled_graph(tmp_path):
    subprocess.run([sys.executable, "-c", COMPILING, tmp_path / "store"], check=True, timeout=300)


@pytest.mark.parametrize("setting", ["float64", "bfloat16", "meta"])
def test_torchs_defaults_change_nothing(setting):
    def ask() -> list[torch.Tensor]:
        index, memory = Index("Flat"), [RollingMemory(1, 1, 32, 4, 4, backend=b) for b in get_args(Backend)]
        found = [index.search(queries, 3), index.add(keys).search(queries, 30)]
        found.append(RandomSource(stores.documents(1)).search(tokens, 3))
        for each in memory:
            assert each.add(keys[None, None], keys[None, None]).device.type == "cpu"
            found.append(each.search(queries[None, None], 40))
            other = RollingMemory(1, 1, 32, 4, 4, backend=each.asked_backend)
            other.load_state_dict(each.state_dict())
            found.append(other.search(queries[None, None], 3))
        return [part for each in found for part in (each.scores, each.ids, each.mask)]

    keys, queries, tokens = torch.randn(20, 4), torch.randn(3, 4), torch.randint(1, 5, (2, 6))
    expected = ask()
    try:
        torch.set_default_device("meta") if setting == "meta" else torch.set_default_dtype(
            getattr(torch, setting)
        )
        found = ask()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))
