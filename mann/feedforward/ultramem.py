"""UltraMem: a table found by product keys whose scores meet in a small matrix, and read through several projections."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.auxiliary import Auxiliary
from mann.linear import Linear
from mann.product_keys import largest
from mann.table_optim import about_to_read

Scores = Float[Tensor, "tokens cores k"]
Rows = Int[Tensor, "tokens k"]


class UltraMem(Auxiliary, nn.Module):
    r"""A table of :math:`n^2` virtual rows, named by :math:`r` scores of each half of a query.

    *Tucker scores.* Each of :math:`n` keys a half has :math:`r` vectors. With :math:`a_i, b_j \in \mathbb{R}^r` the
    scores of two halves and :math:`C = \sum_c C^{(c)}`,

    .. math:: s_{ij} = a_i^\top C \, b_j

    The first singular vectors :math:`u, t` of :math:`C` choose :math:`k` keys of each half, by :math:`u \cdot a_i` and
    :math:`t \cdot b_j`; the :math:`k` best pairs among these are read. That is exact where :math:`k = n`, and nearly
    where :math:`C` nearly has rank one, as it starts; :meth:`core_loss` keeps it there, as an
    :class:`~mann.auxiliary.Auxiliary` term of the training loss.

    *Several cores.* A row has as many parts as there are cores, and part :math:`c` is weighted by
    :math:`a_i^\top C^{(c)} b_j`. Nothing normalises weights.

    *Virtual rows.* The table holds :math:`n^2 / E` rows. Virtual row :math:`\pi(i, j)`, :math:`\pi` a fixed
    permutation, is one of them seen through one of :math:`E` projections:

    .. math:: y = \sum_{e=1}^{E} W_e \sum_{(i,j) \in S_e} s_{ij} \, V_{\pi(i,j)}

    All :math:`W_e` start at zero, so the layer starts as a no-op.

    Left out: the split of one table over many layers, with its skipping connections, which is how layers are wired;
    the decaying rate of the table, which is the optimiser's; the convolution of queries, which gained nothing; and the
    query that both halves share, which lost a little.

    Reference:
        Huang et al., "Ultra-Sparse Memory Network" (UltraMem), 2024. arXiv:2411.12364.

    Args:
        d_model: Width of the residual stream.
        n_keys: Keys of each half, :math:`n`.
        k: Rows read by a token.
        rank: :math:`r`, the scores of a key.
        n_cores: Cores, and parts of a row.
        expansion: :math:`E`, how many virtual rows share one that is stored.
        d_query: Width of a query, both halves; by default half the width, 16 at least.
        d_value: Width of a row; by default half of ``d_model``.
        sparse: Give the table row-sparse gradients, so that a step costs what it touches.
        core_weight: Weight of :meth:`core_loss` in the training loss.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If sizes do not divide one another, or there are fewer than ``k`` keys.
    """

    def __init__(
        self,
        d_model: int,
        n_keys: int = 128,
        k: int = 32,
        rank: int = 2,
        n_cores: int = 2,
        expansion: int = 4,
        d_query: int | None = None,
        d_value: int | None = None,
        sparse: bool = True,
        core_weight: float = 0.001,
    ) -> None:
        super().__init__()
        d_query = max(16, d_model // 4 * 2) if d_query is None else d_query
        d_value = math.ceil(d_model / 2 / n_cores) * n_cores if d_value is None else d_value
        if not 1 <= k <= n_keys:
            raise ValueError(f"k={k} rows of {n_keys} keys a half: give 1 <= k <= n_keys")
        if d_query < 2 or d_query % 2:
            raise ValueError(f"d_query={d_query} has no two halves: give an even number")
        if rank < 1 or n_cores < 1 or d_value % n_cores:
            raise ValueError(
                f"rows of {d_value} numbers have no {n_cores} equal parts, or rank={rank} is no rank"
            )
        if expansion < 1 or n_keys**2 % expansion:
            raise ValueError(f"{n_keys}**2 virtual rows are no multiple of expansion={expansion}")
        self.n_keys, self.k, self.n_cores, self.expansion = n_keys, k, n_cores, expansion
        self.core_weight = core_weight
        half = d_query // 2
        self.query = Linear(d_model, d_query)
        self.query_norm, self.key_norm = nn.LayerNorm(half), nn.LayerNorm(half)
        self.keys = nn.Parameter(torch.randn(2, n_keys, rank, half))
        self.keys.role = "embedding"  # type: ignore[attr-defined]
        # Nearly of rank one: all scores of a half count alike.
        self.cores = nn.Parameter((1 + 0.1 * torch.randn(n_cores, rank, rank)) / (rank * n_cores))
        self.table = nn.Embedding(n_keys**2 // expansion * n_cores, d_value // n_cores, sparse=sparse)
        nn.init.normal_(self.table.weight, std=d_value**-0.5)
        self.out = Linear(expansion * d_value, d_model)
        nn.init.zeros_(self.out.weight)
        # Without a common factor with the number of rows, so that multiplying by it is a permutation of them.
        self._stride = next(
            step for step in range(int(n_keys**2 * 0.618) | 1, n_keys**2 + 2) if math.gcd(step, n_keys) == 1
        )

    def look_up(self, x: Float[Tensor, "tokens width"]) -> tuple[Scores, Rows]:
        """The virtual rows that each token reads, best first, and what each core makes of them.

        Shapes:
            x: ``[tokens, width]``; scores: ``[tokens, cores, k]``; rows: ``[tokens, k]``
        """
        halves = self.query_norm(self.query(x).unflatten(-1, (2, -1))).to(self.keys.dtype)
        keys = self.key_norm(self.keys) * self.keys.shape[-1] ** -0.5
        scores = torch.einsum("tsd,snrd->stnr", halves, keys).to(self.cores.dtype)
        keys_of = self._best(scores.detach(), self.cores.detach().sum(0))
        left, right = (
            half.gather(1, at[..., None].expand(-1, -1, half.shape[-1]))
            for half, at in zip(scores, keys_of, strict=True)
        )
        cored = torch.einsum("tkr,crs->tcks", left, self.cores)
        return (cored * right[:, None]).sum(-1), keys_of[0] * self.n_keys + keys_of[1]

    def _best(
        self, scores: Float[Tensor, "2 tokens n rank"], core: Float[Tensor, "rank rank"]
    ) -> tuple[Int[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
        """The key of each half in each of the best pairs."""
        u, _, t = torch.linalg.svd(core.float())
        first = torch.stack([u[:, 0], t[0]])
        # A pair of singular vectors has two signs, and only one looks for large scores.
        first = first * torch.where(first.sum() < 0, -1.0, 1.0)
        at = largest((scores * first[:, None, None].to(scores.dtype)).sum(-1), self.k)
        left, right = (
            half.gather(1, places[..., None].expand(-1, -1, half.shape[-1]))
            for half, places in zip(scores, at, strict=True)
        )
        pairs = largest(((left @ core.to(left.dtype)) @ right.mT).flatten(1), self.k)
        return (
            at[0].gather(1, pairs.div(self.k, rounding_mode="floor")),
            at[1].gather(1, pairs.remainder(self.k)),
        )

    def place(self, rows: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
        """Where virtual rows are stored, and which projection they are seen through."""
        moved, stored = rows * self._stride % self.n_keys**2, self.n_keys**2 // self.expansion
        return moved % stored, moved.div(stored, rounding_mode="floor")

    def core_loss(self, margin: float = 0.15) -> Float[Tensor, ""]:
        r"""How far the core is from rank one, :math:`\frac{1}{r-1} \sum_{i>1} \max(0, \lambda_i - \tau)^2`.

        :math:`\lambda` are its singular values.
        """
        others = torch.linalg.svdvals(self.cores.sum(0).float())[1:]
        return F.relu(others - margin).square().sum() / max(1, len(others))

    def auxiliary_loss(self) -> Float[Tensor, ""]:
        """The loss of the core, weighted."""
        return self.core_weight * self.core_loss()

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        scores, rows = self.look_up(x.flatten(0, 1))
        stored, seen = self.place(rows)
        # Rows seen through one projection stand together, and are one bag for each part.
        seen, order = seen.sort(dim=-1, stable=True)
        stored = stored.gather(-1, order)[:, None] * self.n_cores + torch.arange(
            self.n_cores, device=x.device
        ).unsqueeze(-1)
        scores = scores.gather(-1, order[:, None].expand_as(stored))
        through = torch.arange(self.expansion, device=x.device).expand(len(seen), -1).contiguous()
        first = torch.searchsorted(seen, through)[:, None].expand(-1, self.n_cores, -1).flatten(0, 1)
        first = first + torch.arange(0, stored.numel(), self.k, device=x.device)[:, None]
        about_to_read(self.table, stored)
        read = F.embedding_bag(
            stored.flatten(),
            self.table.weight,
            first.flatten(),
            mode="sum",
            per_sample_weights=scores.flatten().to(self.table.weight.dtype),
            sparse=self.table.sparse,
        )
        parts = read.view(*x.shape[:2], self.n_cores, self.expansion, -1).transpose(2, 3)
        return self.out(parts.flatten(2).to(x.dtype))
