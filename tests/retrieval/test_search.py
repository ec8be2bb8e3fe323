from __future__ import annotations

import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retrieval import Index
from retrieval.search import enroll


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
