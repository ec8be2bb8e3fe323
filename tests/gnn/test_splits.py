from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from gnn import Split, fold_split, per_class_split, random_split
from gnn.splits import split_name

Y = torch.tensor([0, 1, 2] * 10 + [-1] * 3)


def items(split):
    return {name: set(part.tolist()) for name, part in split.parts.items()}


def test_the_name_travels_with_the_masks():
    split = Split("public", torch.tensor([0]), torch.tensor([2, 1]), torch.tensor([4]))
    data = Data(x=torch.zeros(5, 1))
    given = split.onto(data)
    assert split_name(given) == "public"
    assert given.val_mask.tolist() == [False, True, True, False, False]
    assert "split" not in data
    again = Split.of_masks("again", given.train_mask, given.val_mask, given.test_mask)
    assert items(again) == items(split)
    with pytest.raises(ValueError, match=r'data\["split"\]'):
        split_name(data)
    with pytest.raises(ValueError, match="beyond the 4 of the graph"):
        split.onto(Data(x=torch.zeros(4, 1)))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("", [0], [1], [2]), "needs a name"),
        (("a", [0], [], [2]), "nothing in val"),
        (("a", [0], [1], [1]), "in two parts"),
        (("a", [0, 0], [1], [2]), "twice"),
    ],
)
def test_what_is_no_split_is_refused(parts, says):
    name, *rest = parts
    with pytest.raises(ValueError, match=says):
        Split(name, *(torch.tensor(part, dtype=torch.int64) for part in rest))


def test_at_random():
    split = random_split(50, 7)
    assert split.name == "random seed 7, 60/20/20"
    assert [len(part) for part in split.parts.values()] == [30, 10, 10]
    assert set.union(*items(split).values()) == set(range(50))
    assert items(random_split(50, 7)) == items(split) != items(random_split(50, 8))
    assert [len(part) for part in random_split(7, 0, (0.5, 0.25, 0.25)).parts.values()] == [4, 1, 2]
    with pytest.raises(ValueError, match="make 1"):
        random_split(9, 0, (0.5, 0.2, 0.2))


def test_as_many_of_each_class():
    split = per_class_split(Y, 3, train=2, val=9, test=100)
    assert split.name == "random seed 3, 2 a class/9/15"
    assert Y[split.train].bincount().tolist() == [2, 2, 2]
    assert len(split.val) == 9
    assert set.union(*items(split).values()) == set(range(30))  # nodes without a class are left out
    with pytest.raises(ValueError, match="class 0 has 10 items"):
        per_class_split(Y, 0, train=11)


def test_folds_are_a_partition_and_stratified():
    y = Y[:30]
    splits = [fold_split(y, fold, 5, seed=2) for fold in range(5)]
    assert splits[3].name == "fold 3 of 5, seed 2"
    tested = torch.cat([split.test for split in splits])
    assert sorted(tested.tolist()) == list(range(30))
    for number, split in enumerate(splits):
        assert y[split.test].bincount().tolist() == [2, 2, 2]
        assert items(split)["val"] == items(splits[(number + 1) % 5])["test"]
        assert len(split.train) == 18
    with pytest.raises(ValueError, match="fold 5 of 5"):
        fold_split(y, 5, 5)
