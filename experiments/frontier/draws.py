"""Joint draws of all mean losses of a study: what they might have been with other seeds and other documents."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from experiments.frontier.cells import Cell, Table
from experiments.frontier.noise import Spreads

Floats = NDArray[np.float64]

DRAWS = 4000


class Draws:
    r"""Mean test losses drawn around those measured; a draw holds one loss for every cell.

    A loss may be off for two reasons, which add. *Seeds*: each mean is moved by its pooled spread over the root of its
    number of seeds; cells of one budget move together as far as equal seeds (one data order) were seen to move
    them. *Documents*: one Gaussian weight a document, the same for all cells of the draw (all were scored on the
    same text), times the jackknife influence of that document on each cell,

    .. math:: \text{draws} \times \text{documents} \;@\; \text{documents} \times \text{cells},

    so that what a document does to all arms alike leaves their differences alone. Both spreads are themselves drawn
    from their chi-square distributions. Resampling seeds is not used (with two to five of them it covers 80 to
    90 % where 95 % is claimed), nor is resampling documents (see :class:`experiments.frontier.documents.Text`).

    Every number comes from a generator of its own, named after what it is for: adding an arm to a study changes no
    draw of another.

    Args:
        table: all rows.
        spreads: of their losses.
        count: how many draws.
    """

    def __init__(self, table: Table, spreads: Spreads, count: int = DRAWS) -> None:
        self.spreads = spreads
        self.count = count
        self._documents: Floats | None = None
        if table.text is not None:
            weights = _generator("documents").standard_normal((count, len(table.text.sizes)))
            self._documents = weights * self._scale("documents", table.text.df)[:, None]
        self._orders: dict[tuple[float, int], Floats] = {}
        self._seeds: dict[tuple[str, float, int], Floats] = {}

    def losses(self, cell: Cell) -> Floats:
        """Draws of a cell's mean test loss, ``[draws]``."""
        return cell.loss("test") + self.from_seeds(cell) + self.from_documents(cell)

    def from_seeds(self, cell: Cell) -> Floats:
        """How far other seeds would move the mean, ``[draws]``."""
        if cell.key not in self._seeds:
            self._seeds[cell.key] = self._moved(cell)
        return self._seeds[cell.key]

    def from_documents(self, cell: Cell) -> Floats:
        """How far other documents would move the mean, ``[draws]``; 0 where rows do not tell documents."""
        influence = self.spreads.runs(cell).influence
        if self._documents is None or influence is None:
            return np.zeros(self.count)
        return self._documents @ influence.mean(axis=0)

    def normal(self, *name: object) -> Floats:
        """Standard normal numbers that belong to a name, ``[draws]``."""
        return _generator(*name).standard_normal(self.count)

    def _moved(self, cell: Cell) -> Floats:
        noise = self.spreads.noise(cell)
        if noise.df == 0:
            return np.zeros(self.count)
        sd = noise.sd if self._documents is None else noise.besides
        moved = self.normal(*cell.key) / math.sqrt(len(cell.seeds))
        if not cell.derived:
            # A derived run repeats its parent's order of data; how far that moves both alike is not estimated.
            shared = self.spreads.shared
            order = np.mean([self._order(cell.budget, seed) for seed in cell.seeds], axis=0)
            moved = math.sqrt(1 - shared) * moved + math.sqrt(shared) * order
        return sd * self._scale("seeds", noise.df) * moved

    def _order(self, budget: float, seed: int) -> Floats:
        key = budget, seed
        if key not in self._orders:
            self._orders[key] = self.normal("order", budget, seed)
        return self._orders[key]

    def _scale(self, name: str, df: float) -> Floats:
        """What a standard deviation might be, as parts of what it was estimated to be."""
        return np.sqrt(df / _generator(name, df).chisquare(df, self.count))


def _generator(*name: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(name).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
