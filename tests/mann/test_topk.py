"""The largest of each row, beside torch's and with ties in one order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import Ledger
from mann.topk import CACHED, FEW, LEAST, SHORT, WORTH, top_ids


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_it_is_a_stable_sort_cut_off(seed, n, k, tied):
    scores = torch.randn(3, 5, n, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if tied else scores  # rounding makes zeros of both signs, too
    k = min(k, n)
    expected = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    assert torch.equal(top_ids(scores, k), expected)
    assert torch.equal(top_ids(scores.transpose(0, 1), k), expected.transpose(0, 1))


@pytest.mark.parametrize("kind", ["apart", "next to each other", "tied", "below zero", "strange", "strided"])
@pytest.mark.parametrize(
    ("n", "k"), [(64, 1), (64, 63), (64, 64), (119, 32), (128, 32), (512, 32), (1000, 64), (1024, 3)]
)
def test_short_words_find_the_same(n, k, kind):
    """Rows of so many numbers that they are found in parts, and by fewer bits than the numbers have."""
    scores = torch.randn(CACHED // n + 700, n, generator=torch.Generator().manual_seed(n))
    assert LEAST <= n <= SHORT
    assert k <= FEW
    assert scores.numel() > max(CACHED, WORTH)
    if kind == "next to each other":
        scores = (scores * 8).round() * 2**-23 + 1
    elif kind == "tied":
        scores = scores.round()
    elif kind == "below zero":
        scores = -scores.square() * 1e-30
    elif kind == "strange":
        for value in (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45):
            scores[torch.rand(scores.shape, generator=torch.Generator().manual_seed(k)) < 0.1] = value
            scores = scores.roll(1, 0)
    elif kind == "strided":
        scores = scores.t().contiguous().t()
    expected = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    assert torch.equal(top_ids(scores, k), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype):
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).to(dtype).unique(dim=1)
    found = scores.gather(1, top_ids(scores, 5))
    assert torch.equal(found, scores.topk(5).values)


def test_extremes():
    scores = torch.tensor([[0.0, -torch.inf, 3e38, torch.inf, -3e38, 1e-45]])
    assert top_ids(scores, 6).tolist() == [[3, 2, 5, 0, 4, 1]]
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"the {k} largest of 6"):
            top_ids(scores, k)


def test_it_is_billed_as_what_it_reads_and_writes():
    scores = torch.randn(4, 8, 30)
    with Ledger() as ledger, FlopCounterMode(display=False) as counter:
        top_ids(scores, 5)
    assert ledger.flops == counter.get_total_flops() == 0
    assert ledger.bytes == 4 * 8 * (30 * 4 + 5 * 8)
    torch.library.opcheck(torch.ops.mnemograph.top_ids.default, (scores, 5))
