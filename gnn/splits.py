"""Which items train, which choose and which are reported: never without a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch_geometric.data import Data

__all__ = ["Split", "fold_split", "per_class_split", "random_split", "split_name"]


@dataclass(frozen=True)
class Split:
    """Items of a set, nodes of a graph or graphs, by what they are for.

    The same network scores several points more on one split than on another, so a number without the split's name says
    nothing: the name travels with the data and into what is logged.

    Args:
        name: Such as ``"public"``, ``"fold 3 of 10"`` or ``"random seed 7, 60/20/20"``.
        train, val, test: Numbers of the items.

    Shapes:
        train, val, test: ``[items]`` each

    Raises:
        ValueError: If there is no name, a part is empty, or an item is in two parts.
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError('a split needs a name, such as "public" or "random seed 7, 60/20/20"')
        for part, items in self.parts.items():
            if not len(items):
                raise ValueError(f"split {self.name!r} has nothing in {part}")
        every = torch.cat(list(self.parts.values()))
        if len(every.unique()) != len(every):
            raise ValueError(f"split {self.name!r} has items in two parts, or twice in one")

    @property
    def parts(self) -> dict[str, Int[Tensor, " items"]]:
        """The three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def onto(self, data: Data) -> Data:
        """A copy of a graph with this split's masks over its nodes, and its name as ``split``.

        Raises:
            ValueError: If the graph has fewer nodes than the split names.
        """
        n_nodes = int(data.num_nodes or 0)
        if int(torch.cat(list(self.parts.values())).max()) >= n_nodes:
            raise ValueError(f"split {self.name!r} names nodes beyond the {n_nodes} of the graph")
        given = data.clone()
        for part, items in self.parts.items():
            mask = torch.zeros(n_nodes, dtype=torch.bool)
            mask[items] = True
            given[f"{part}_mask"] = mask
        given["split"] = self.name
        return given

    @classmethod
    def of_masks(cls, name: str, train: Tensor, val: Tensor, test: Tensor) -> Split:
        """A split from three masks."""
        return cls(name, *(mask.nonzero().squeeze(1) for mask in (train, val, test)))


def split_name(data: Data) -> str:
    """The name of the split that a graph's masks are.

    Raises:
        ValueError: If it has none.
    """
    name = data.get("split")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(
            'the masks of this graph have no name: data["split"] = "public" gives one, and so does Split.onto(data)'
        )
    return name


def random_split(n_items: int, seed: int, shares: Sequence[float] = (0.6, 0.2, 0.2)) -> Split:
    """Items at random; what shares leave over by rounding is tested.

    Args:
        n_items: Number of items.
        seed: Of its own generator.
        shares: Of train, val and test, 1 together.

    Raises:
        ValueError: If there are not three shares that make 1.
    """
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ValueError(f"shares {tuple(shares)}: give three that are positive and make 1")
    order = torch.randperm(n_items, generator=torch.Generator().manual_seed(seed))
    first, second = round(shares[0] * n_items), round((shares[0] + shares[1]) * n_items)
    percent = "/".join(f"{100 * share:g}" for share in shares)
    return Split(f"random seed {seed}, {percent}", order[:first], order[first:second], order[second:])


def per_class_split(
    y: Int[Tensor, " items"], seed: int, *, train: int = 20, val: int = 500, test: int = 1000
) -> Split:
    """The same number of each class to train on, and others at random; items of class -1 are left out.

    The public split of Planetoid is one such draw; another one is another task.

    Args:
        y: Class of each item.
        seed: Of its own generator.
        train: Items of each class.
        val: Items in all.
        test: Items in all; fewer where there are fewer.

    Shapes:
        y: ``[items]``

    Raises:
        ValueError: If a class has too few items.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order] >= 0]
    chosen = []
    for label in y[y >= 0].unique().tolist():
        members = order[y[order] == label]
        if len(members) < train:
            raise ValueError(f"class {label} has {len(members)} items and {train} are asked for")
        chosen.append(members[:train])
    taken = torch.cat(chosen)
    rest = order[~torch.isin(order, taken)]
    name = f"random seed {seed}, {train} a class/{val}/{min(test, len(rest) - val)}"
    return Split(name, taken, rest[:val], rest[val : val + test])


def fold_split(y: Int[Tensor, " items"], fold: int, folds: int, seed: int = 0) -> Split:
    """One fold of a stratified cross-validation: this fold is tested, the next one chooses, the others train.

    Args:
        y: Class of each item; each is spread over all folds.
        fold: Which one, from 0.
        folds: How many, 3 or more.
        seed: Of its own generator; the folds of one seed are a partition.

    Shapes:
        y: ``[items]``

    Raises:
        ValueError: If there is no such fold.
    """
    if folds < 3 or not 0 <= fold < folds:
        raise ValueError(f"fold {fold} of {folds}: folds are numbered from 0, and three are the fewest")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].argsort(stable=True)]
    of_item = torch.empty_like(order)
    of_item[order] = torch.arange(len(y)) % folds
    test, val = of_item == fold, of_item == (fold + 1) % folds
    return Split.of_masks(f"fold {fold} of {folds}, seed {seed}", ~(test | val), val, test)
