"""How far two ways of computing one score may lie apart."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from retrieval.exact import Metric

__all__ = ["LARGEST", "LONGEST", "largest_rounding", "lengths", "most_of", "refuse_long", "rounding"]

# Twice the unit roundoff of float32: each of the two scores may be off to its own side.
_TWICE = 2.0**-23
# Where a sum of products may overflow, nothing can be said.
LARGEST = 1e38
# Length up to which clusters can be made of vectors: a sum of squares of many of them is a float32.
LONGEST = 1e18
# What is lost, of each product, where numbers are too small to be normal.
_LOST = 2.0**-125


def lengths(x: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch"]:
    """Euclidean lengths, in double precision: a square of a large number is no float32."""
    return np.sqrt(np.einsum("...d,...d->...", x, x, dtype=np.float64))


def rounding(
    queries: Float[np.ndarray, "*batch"], keys: Float[np.ndarray, "*batch"] | float, d: int, metric: Metric
) -> Float[np.ndarray, "*batch"]:
    r"""The most by which two ways of rounding a score in float32 can differ.

    A sum of ``d`` products is off by :math:`d\,u\,\lVert q \rVert\,\lVert x \rVert` at most, in whatever order it is
    added up, with :math:`u = 2^{-24}` (Higham 2002, `Accuracy and Stability of Numerical Algorithms
    <https://doi.org/10.1137/1.9780898718027>`_, section 3.1). A squared distance may be taken as a sum of both squared
    lengths and twice a product, which cancel: :math:`(\lVert q \rVert + \lVert x \rVert)^2` in place of the product.

    Args:
        queries: Lengths of queries.
        keys: Length of the longest key they are compared with.
        d: Their dimension.
        metric: ``"ip"`` or ``"l2"``.

    Returns:
        The bound, infinite where a score may overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        size = queries * keys if metric == "ip" else (queries + keys) ** 2
        return np.where(size < LARGEST, _TWICE * (d + 4) * size + d * _LOST, np.inf)


def largest_rounding(x: Float[np.ndarray, "n d"], keys: float, metric: Metric) -> float:
    """The largest :func:`rounding` of some queries, in fewer steps.

    Args:
        x: The queries.
        keys: Length of the longest key.
        metric: ``"ip"`` or ``"l2"``.
    """
    d = x.shape[1]
    query = math.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64).max())
    return most_of(query * keys if metric == "ip" else (query + keys) ** 2, d)


def most_of(size: float, d: int) -> float:
    """The most by which two ways of adding up ``d`` products differ, whose absolute values have that sum at most."""
    return _TWICE * (d + 4) * size + d * _LOST if size < LARGEST else math.inf


def refuse_long(x: Float[np.ndarray, "*batch d"], kind: str) -> None:
    """Refuse vectors of which clusters cannot be made: where products overflow, FAISS ends the process.

    Args:
        x: The vectors.
        kind: What they are for.

    Raises:
        ValueError: If one is longer than 1e18; it says which.
    """
    longest = lengths(x)
    if longest.size and (most := float(longest.max())) > LONGEST:
        place = ", ".join(str(int(i)) for i in np.unravel_index(int(longest.argmax()), longest.shape))
        raise ValueError(
            f"vector {place} has length {most:.1e}, and {kind} takes lengths up to {LONGEST:.0e}: scale vectors down, "
            "or compare them all (a flat store, a dense backend)"
        )
