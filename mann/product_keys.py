"""Product keys: the best of n² rows of a table, found exactly by comparing a query with 2 n keys."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.linear import Linear
from mann.norm import compute_dtype, rms_norm
from mann.products import products
from mann.topk import top_ids

Scores = Float[Tensor, "batch time heads k"]
Rows = Int[Tensor, "batch time heads k"]
QueryNorm = Literal["rms", "layer", "batch", "none"]

_LEAKS = (
    'ProductKeys(norm="batch") normalises a query by the mean and spread of all tokens of the batch: in training a '
    'token hears later ones, and losses in train mode are too good. Compare in eval mode only, or take norm="rms"'
)


# Numbers in float32 that top_ids() compares as fast as they are put into groups.
DIRECT = 1 << 9


class ProductKeys(nn.Module):
    r"""Two sets of :math:`n` keys, compared with the two halves of a query, name :math:`k` of :math:`n^2` rows.

    .. math:: s_{ij} = q_1 \cdot a_i + q_2 \cdot b_j, \qquad q = \operatorname{norm}(W_q x)

    Row :math:`(i, j)` has the number :math:`n i + j` and the key :math:`[a_i ; b_j]`, so the best of all :math:`n^2`
    are among the pairs of the best of each half. With both halves sorted, a pair of the ranks :math:`(i, j)` has
    :math:`i j` pairs that are at least as good, itself among them: only those with :math:`i j \le k` are compared, 119
    of 1,024 for :math:`k = 32`. Gradients reach the keys and the query through the scores.

    The original normalises queries over the batch, which uses more rows but lets a token hear later ones while it
    trains; the default normalises each query by itself, :math:`q / \operatorname{rms}(q)`.

    Reference:
        Lample et al., "Large Memory Layers with Product Keys", 2019. arXiv:1907.05242.

    Args:
        d_model: Width of what queries are made of.
        n_keys: Keys of each half, :math:`n`.
        k: Rows named by each head.
        n_heads: Queries of a token, each with keys of its own.
        d_query: Width of a query, both halves; by default half the width, 16 at least.
        norm: What normalises queries: ``"rms"``, ``"layer"`` (with gain and bias, shared by heads), ``"batch"``
            (**not causal in training**; in eval mode it takes running statistics) or ``"none"``.

    Shapes:
        input: ``[batch, time, width]``; scores, best first, and rows: ``[batch, time, heads, k]``.

    Raises:
        ValueError: If there are fewer than ``k`` keys, ``d_query`` is odd, or there is no such norm.
    """

    first: Tensor
    second: Tensor

    def __init__(
        self,
        d_model: int,
        n_keys: int = 128,
        k: int = 32,
        n_heads: int = 4,
        d_query: int | None = None,
        norm: QueryNorm = "rms",
    ) -> None:
        super().__init__()
        d_query = max(16, d_model // 4 * 2) if d_query is None else d_query
        if not 1 <= k <= n_keys:
            raise ValueError(f"k={k} rows of {n_keys} keys a half: give 1 <= k <= n_keys")
        if d_query < 2 or d_query % 2:
            raise ValueError(f"d_query={d_query} has no two halves: give an even number")
        if norm not in ("rms", "layer", "batch", "none"):
            raise ValueError(f'norm={norm!r} is no norm of queries: give "rms", "layer", "batch" or "none"')
        self.n_keys, self.k, self.n_heads = n_keys, k, n_heads
        self.query = Linear(d_model, n_heads * d_query)
        self.norm: nn.Module = nn.Identity()
        if norm == "rms":
            self.norm = _RMSNorm()
        elif norm == "layer":
            self.norm = nn.LayerNorm(d_query)
        elif norm == "batch":
            warnings.warn(_LEAKS, stacklevel=2)
            self.norm = _BatchNorm(n_heads, d_query)
        half = d_query // 2
        self.keys = nn.Parameter(torch.empty(n_heads, 2, n_keys, half).uniform_(-(half**-0.5), half**-0.5))
        self.keys.role = "embedding"  # type: ignore[attr-defined]
        pairs = [(i, j) for i in range(k) for j in range(k // (i + 1))]
        for name, ranks in zip(("first", "second"), zip(*pairs, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(ranks), persistent=False)

    def forward(self, x: Float[Tensor, "batch time width"]) -> tuple[Scores, Rows]:
        queries = self.norm(self.query(x).unflatten(-1, (self.n_heads, -1)).flatten(0, 1))
        halves = queries.unflatten(-1, (2, -1)).to(self.keys.dtype)
        # Halves before tokens, as the product of matrices leaves them: what follows goes along rows in memory.
        scores = _match(halves.permute(1, 2, 0, 3).flatten(0, 1), self.keys.flatten(0, 1))
        scores = scores.unflatten(0, (self.n_heads, 2))
        keys, sums = self._best(scores.detach())
        top = _Picked.apply(scores, keys, sums) if _own_gradient(scores) else scores.gather(-1, keys).sum(1)
        rows = keys[:, 0] * self.n_keys + keys[:, 1]
        shape = (*x.shape[:2], self.n_heads, self.k)
        return top.transpose(0, 1).reshape(shape), rows.transpose(0, 1).reshape(shape)

    def _best(
        self, scores: Float[Tensor, "heads 2 n keys"]
    ) -> tuple[Int[Tensor, "heads 2 n k"], Float[Tensor, "heads n k"]]:
        """The key of each half in each of the best pairs, and the scores of these pairs."""
        at = largest(scores, self.k)
        best = scores.gather(-1, at)
        # Gathered, as index_select takes columns one after the other, in three times the time.
        shape = (*best.shape[:1], best.shape[2], len(self.first))
        sums = best[:, 0].gather(-1, self.first.expand(shape)) + best[:, 1].gather(
            -1, self.second.expand(shape)
        )
        chosen = top_ids(sums, self.k)
        ranks = [rank.index_select(0, chosen.flatten()).view_as(chosen) for rank in (self.first, self.second)]
        return at.gather(-1, torch.stack(ranks, 1)), sums.gather(-1, chosen)


def largest(scores: Float[Tensor, "*batch n"], k: int) -> Int[Tensor, "*batch k"]:
    """As :func:`~mann.topk.top_ids`, of equal scores any first; several times as fast where ``k`` is much less than n.

    Numbers are put into groups of :math:`g`, one of each :math:`g`-th part; the :math:`k` largest are among the
    :math:`k` groups with the largest maxima, so :math:`n/g` maxima and then :math:`g k` numbers are compared.

    Args:
        scores: What to choose from.
        k: How many.

    Shapes:
        scores: ``[*batch, n]``, result: ``[*batch, k]``
    """
    n = scores.shape[-1]
    # The power of two next to the best size, sqrt(n / k).
    size = 1 << max(0, (n // k).bit_length() // 2)
    if size < 4 or n % size or (n <= DIRECT and scores.dtype == torch.float32):
        return top_ids(scores, k)
    maxima = scores.unflatten(-1, (size, -1)).amax(-2)
    groups = top_ids(maxima, k)
    members = torch.arange(0, n, n // size, device=scores.device)
    within = (groups[..., None, :] + members[:, None]).flatten(-2)
    return within.gather(-1, top_ids(scores.gather(-1, within), k))


def _match(
    queries: Float[Tensor, "n rows d"], keys: Float[Tensor, "n keys d"]
) -> Float[Tensor, "n rows keys"]:
    """The scores of all keys for each query."""
    return _Match.apply(queries, keys) if _own_gradient(queries) else queries @ keys.mT


def _own_gradient(x: Tensor) -> bool:
    """Not where autocast chooses types, nor for transforms of torch.func, which know torch's own operators only."""
    return compute_dtype(x) == x.dtype and not torch._C._are_functorch_transforms_active()


class _Match(torch.autograd.Function):
    # By hand because autograd's products of many pairs are MKL's, half as fast where products() pays. It wants factors
    # that lie in one piece.
    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        queries = queries.contiguous()
        ctx.save_for_backward(queries, keys)
        return products(queries, keys.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        queries, keys = ctx.saved_tensors
        asked, wanted = ctx.needs_input_grad
        return (
            products(grad, keys) if asked else None,
            products(queries.mT.contiguous(), grad).mT if wanted else None,
        )


class _Picked(torch.autograd.Function):
    """The scores of pairs, which are known, as the sums of the scores of their keys."""

    @staticmethod
    def forward(ctx, scores: Tensor, keys: Tensor, sums: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(keys)
        ctx.shape = scores.shape
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (keys,) = ctx.saved_tensors
        # A key may be in several pairs.
        return grad.new_zeros(ctx.shape).scatter_add_(-1, keys, grad[:, None].expand_as(keys)), None, None


class _RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


class _BatchNorm(nn.BatchNorm1d):
    """Each number of each head by itself."""

    def __init__(self, n_heads: int, d_query: int) -> None:
        super().__init__(n_heads * d_query)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)).view_as(x)
