from __future__ import annotations

import pytest
import torch

from retrieval import Neighbors


def test_missing_neighbours_are_masked_and_never_minus_one():
    found = Neighbors.of(torch.tensor([[3.0, -3e38], [-3e38, 2.0]]), torch.tensor([[7, -1], [-1, 0]]))
    assert found.ids.tolist() == [[7, 0], [0, 0]]
    assert found.mask.tolist() == [[True, False], [True, False]]
    assert found.scores.tolist() == [[3.0, 0.0], [2.0, 0.0]]


def test_none_is_all_masked():
    nothing = Neighbors.none(2, 3, 4)
    assert nothing.ids.shape == (2, 3, 4)
    assert nothing.k == 4
    assert not nothing.mask.any()
    assert nothing.flops == nothing.bytes == 0


def test_to_keeps_the_bill():
    found = Neighbors.of(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.long), flops=5, bytes=6).to("cpu")
    assert (found.flops, found.bytes) == (5, 6)


def test_wrong_shapes_and_types_are_refused():
    scores, ids, mask = (
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.long),
        torch.zeros(2, 3, dtype=torch.bool),
    )
    with pytest.raises(Exception, match="ids"):
        Neighbors(scores, ids[:, :2], mask)
    with pytest.raises(ValueError, match="float32"):
        Neighbors(scores.double(), ids, mask)
    with pytest.raises(ValueError, match="int64"):
        Neighbors(scores, ids.int(), mask)
