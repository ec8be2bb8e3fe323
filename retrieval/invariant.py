"""Calls into FAISS whose result for a query is the same wherever in whatever batch it stands.

Products of matrices round a row differently in another shape, and at another place in the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from retrieval.runtime import faiss

__all__ = ["alike", "transformed"]

# Pairs of a vector and a row of a matrix in one call.
_PAIRS = 1 << 20


def alike(call: Callable[..., Any], one_by_one: bool, *arrays: np.ndarray) -> list[np.ndarray]:
    """What a call returns for arrays of rows; row by row where it would multiply matrices.

    Args:
        call: Takes the arrays, returns arrays with as many rows.
        one_by_one: Whether it would.
        arrays: Queries, and what goes with each.
    """
    if not one_by_one:
        return list(call(*arrays))
    parts = [call(*(array[i : i + 1] for array in arrays)) for i in range(len(arrays[0]))]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def transformed(step: Any, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d_out"]:
    """A transformation of FAISS's applied to vectors, each inner product by itself.

    Args:
        step: The transformation, downcast.
        x: The vectors.
    """
    if not isinstance(step, faiss.LinearTransform):
        (found,) = alike(lambda row: (step.apply(row),), isinstance(step, faiss.ITQTransform), x)
        return found
    matrix = faiss.vector_to_array(step.A)
    out = np.empty((len(x), step.d_out), np.float32)
    rows = max(1, _PAIRS // step.d_out)
    for i in range(0, len(x), rows):
        part = np.ascontiguousarray(x[i : i + rows])
        names = np.tile(np.arange(step.d_out), (len(part), 1))
        arrays = (out[i : i + rows], part, matrix, names)
        faiss.fvec_inner_products_by_idx(*map(faiss.swig_ptr, arrays), step.d_in, len(part), step.d_out)
    if step.have_bias:
        out += faiss.vector_to_array(step.b)
    return out
