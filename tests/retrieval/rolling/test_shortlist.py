"""Shortlists of rounded and of full scores: nothing that belongs to the best may be missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.rolling import RollingMemory, search
from retrieval.rolling.shortlist import group_width, reaching
from retrieval.shortlist import multiplies_bfloat16, rounded

D = 16


def scored(queries: torch.Tensor, keys: torch.Tensor, k: int, half: bool) -> np.ndarray:
    """Slots that are listed, by the bound that a search takes."""
    high = len(keys)
    width = group_width(high, k)
    wide = -(-high // width) * width
    error = 1e-5 * queries.double().norm(dim=1) * keys.double().norm(dim=1).max()
    x, y = queries, keys
    if half:
        (x, lost), (y, worst) = rounded(queries), rounded(keys)
        longest = keys.double().norm(dim=1).max()
        error = error + lost * (longest + worst.max()) + queries.double().norm(dim=1) * worst.max()
    scores = torch.full((len(x), wide), -torch.inf, dtype=x.dtype)
    scores[:, :high] = (x.float() @ y.float().T).to(x.dtype)
    return reaching(scores, error.numpy(), k, high)


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 7, 64, 65, 511, 700]),
    st.integers(1, 40),
    st.sampled_from(["random", "alike", "opposite", "whole", "zero", "tiny"]),
    st.booleans(),
)
def test_the_best_are_on_the_list(seed, high, k, kind, half):
    draw = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(9, D, generator=draw), torch.randn(high, D, generator=draw)
    if kind == "alike":
        keys = keys[:1] + 1e-3 * keys
    elif kind == "opposite":
        # All scores are negative.
        keys, queries = keys.abs(), -queries.abs()
    elif kind == "whole":
        keys, queries = keys.round(), queries.round()
    elif kind == "zero":
        queries[::2] = 0
    elif kind == "tiny":
        keys = keys * 1e-25
    slots = scored(queries, keys, k, half)
    exact = queries.double() @ keys.double().T
    for row, listed in zip(exact, slots, strict=True):
        listed = listed[listed >= 0]
        assert len(set(listed.tolist())) == len(listed) >= min(k, high)
        kth = row.topk(min(k, high)).values[-1]
        assert set((row > kth).nonzero().flatten().tolist()) <= set(listed.tolist())
        assert listed.max() < high


def test_few_more_are_listed_than_wanted():
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(64, D, generator=draw), torch.randn(2048, D, generator=draw)
    for half, most in ((False, 40), (True, 70)):
        assert (scored(queries, keys, 32, half) >= 0).sum(1).mean() < most


def test_of_an_unknown_error_all_columns_are_listed_and_empty_ones_are_not():
    scores = torch.randn(3, 12, dtype=torch.bfloat16)
    scores[1, 4:] = -torch.inf
    found = reaching(scores.clone(), np.array([np.inf, 0.1, np.nan]), 6, 10)
    assert [sorted(row[row >= 0].tolist()) for row in found] == [
        list(range(10)),
        [0, 1, 2, 3],
        list(range(10)),
    ]


def test_the_length_of_what_rounding_took_away_is_no_less_than_it_is():
    for size in (1e-30, 1.0, 1e30):
        x = size * torch.randn(50, D, generator=torch.Generator().manual_seed(0))
        short, lost = rounded(x)
        assert (lost.double() >= (x.double() - short.double()).norm(dim=1)).all()
        assert (lost.double() <= 2.0**-8 * x.double().norm(dim=1) + 1e-36).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "alike", "whole"])
def test_a_search_finds_the_same_by_either_product(monkeypatch, dtype, kind):
    monkeypatch.setattr(search, "_ROUNDED", 1)
    draw = torch.Generator().manual_seed(1)
    memories = [RollingMemory(2, 2, 300, D, 2, backend="dense", dtype=dtype) for _ in range(2)]
    for step in range(5):
        keys, queries = (torch.randn(2, 2, n, D, generator=draw) for n in (110, 70))
        if kind == "alike":
            keys = keys[:, :, :1] + 1e-3 * keys
        elif kind == "whole":
            keys, queries = keys.round(), queries.round()
        found = []
        for memory, half in zip(memories, (True, False), strict=True):
            memory.add(keys, keys[..., :2])
            if step == 2:
                memory.reset(torch.tensor([1]))
            if step == 3:
                memory.load_state_dict(memory.state_dict())
            monkeypatch.setattr(search, "multiplies_bfloat16", lambda half=half: half)
            found.append(memory.search(queries, 20))
        for name in ("scores", "ids", "mask"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name))


def test_without_instructions_for_it_nothing_is_rounded(monkeypatch):
    multiplies_bfloat16.cache_clear()
    for names, expected in (({}, False), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: names)
        assert multiplies_bfloat16() == (expected and torch.backends.mkldnn.is_available())
        multiplies_bfloat16.cache_clear()


def test_a_place_without_a_slot_reads_no_other_row():
    """Whose write indices may be larger than a row has entries."""
    found = []
    for backend in ("dense", "exact"):
        memory = RollingMemory(2, 1, 8, D, D, backend=backend)
        state = memory.state_dict()
        state["written"][0] = state["begin"][0] = 2**33
        memory.load_state_dict(state)
        keys = torch.randn(2, 1, 8, D, generator=torch.Generator().manual_seed(0))
        memory.add(keys[:1], keys[:1], rows=torch.tensor([0]))
        memory.add(keys[1:, :, :3], keys[1:, :, :3], rows=torch.tensor([1]))
        found.append(memory.search(keys, 5))
        assert found[-1].mask[1].sum(-1).eq(3).all()
        assert found[-1].scores.isfinite().all()
    assert torch.equal(found[0].ids, found[1].ids)


def test_a_search_for_inference_keeps_a_memory_as_it_is(monkeypatch):
    monkeypatch.setattr(search, "_ROUNDED", 1)
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: True)
    keys = torch.randn(1, 1, 8, D, generator=torch.Generator().manual_seed(0))
    memory = RollingMemory(1, 1, 8, D, D, backend="dense")
    memory.add(keys, keys)
    with torch.inference_mode():
        memory.search(keys, 3)
    memory.add(keys, keys)
    assert torch.equal(memory.search(keys, 1).ids.flatten(), torch.arange(8, 16))
