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


def test_cat_puts_batches_below_each_other_and_adds_up_their_work():
    one = Neighbors.of(torch.tensor([[1.0]]), torch.tensor([[3]]), flops=5, bytes=6, intops=1)
    two = Neighbors.of(torch.tensor([[2.0], [0.0]]), torch.tensor([[4], [-1]]), flops=7, bytes_random=2)
    both = Neighbors.cat([one, two])
    assert both.ids.tolist() == [[3], [4], [0]]
    assert both.scores.tolist() == [[1.0], [2.0], [0.0]]
    assert both.mask.tolist() == [[True], [True], [False]]
    assert both.work == {"flops": 12, "bytes": 6, "bytes_written": 0, "bytes_random": 2, "intops": 1}


def test_scores_without_ids_are_refused():
    with pytest.raises((ValueError, RuntimeError)):
        Neighbors.of(torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.long))
