"""Brute force in a few lines: the truth every index is tested against."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrieval.neighbors import Neighbors

__all__ = ["Metric", "exact_search", "similarity"]

Metric = Literal["ip", "l2"]


def similarity(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], metric: Metric = "ip"
) -> Float[Tensor, "n m"]:
    r"""Score of every key for every query, larger is nearer: :math:`q \cdot x`, or :math:`-\lVert q - x \rVert^2`."""
    if metric == "ip":
        return queries @ keys.T
    return -(queries.unsqueeze(1) - keys.unsqueeze(0)).square().sum(-1)


def exact_search(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    k: int,
    *,
    metric: Metric = "ip",
    allowed: Bool[Tensor, "n m"] | None = None,
) -> Neighbors:
    """The ``k`` best keys of each query in the total order (score descending, id ascending).

    Args:
        queries: What to look for.
        keys: What to look among.
        k: Neighbours per query; where there are fewer, the rest is masked.
        metric: ``"ip"`` (inner product) or ``"l2"`` (minus the squared distance).
        allowed: Which keys each query may be given; by default all.

    Shapes:
        queries: ``[n, d]``, keys: ``[m, d]``, allowed: ``[n, m]``, result: ``[n, k]``
    """
    scores = similarity(queries.float(), keys.float(), metric)
    n, m = scores.shape
    keep = ~scores.isnan() if allowed is None else allowed & ~scores.isnan()
    best, ids = torch.where(keep, scores, -torch.inf).sort(dim=1, descending=True, stable=True)
    ids = torch.where(keep.gather(1, ids), ids, -1)
    if m < k:
        best = torch.cat([best, best.new_zeros(n, k - m)], 1)
        ids = torch.cat([ids, ids.new_full((n, k - m), -1)], 1)
    per_pair = 2 if metric == "ip" else 3
    return Neighbors.of(
        best[:, :k],
        ids[:, :k],
        flops=per_pair * n * m * queries.shape[-1],
        bytes=4 * (n + m) * queries.shape[-1] + 4 * n * m,
    )
