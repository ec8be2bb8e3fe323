"""PEER: a mixture of very many experts of one neuron each, found by product keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.product_keys import ProductKeys, QueryNorm, Rows, Scores
from mann.table_optim import about_to_read
from retrieval.rows import match_rows, sum_rows


class PEER(nn.Module):
    r"""A two-layer perceptron whose hidden units each token chooses from :math:`n^2` of them.

    Expert :math:`i` is one neuron: a row :math:`u_i` that reads and a row :math:`v_i` that writes.
    :class:`~mann.product_keys.ProductKeys` finds the best :math:`k` of all experts exactly. With :math:`s` their
    scores and :math:`S` the experts of a head,

    .. math:: y = \sum_{\text{heads}} \sum_{i \in S} g_i \, \sigma(x \cdot u_i) \, v_i, \qquad
        g = \operatorname{softmax}_S(s)

    Without competition, :math:`g_i = \max(0, s_i)` instead. Rows :math:`v` start at zero, so the layer starts as a
    no-op.

    References:
        He, "Mixture of a Million Experts" (PEER), 2024. arXiv:2407.04153;
        Csordás et al., "Approximating Two-Layer Feedforward Networks for Efficient Transformers" (scores that do not
        compete), 2023. arXiv:2310.10837.

    Args:
        d_model: Width of the residual stream.
        n_keys: Keys of each half, :math:`n`; there is its square of experts.
        k: Experts of each head.
        n_heads: Queries of a token, each with keys of its own; they share the experts.
        d_query: Width of a query, both halves; by default half the width, 16 at least.
        scores: What makes weights of scores: ``"softmax"``, over the experts of a head, or ``"relu"``.
        activation: :math:`\sigma`.
        norm: What normalises queries, as :class:`~mann.product_keys.ProductKeys` takes it. ``"batch"`` lets a token
            hear later ones while it trains.
        sparse: Give both tables row-sparse gradients, so that a step costs what it touches.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If there are fewer than ``k`` keys, ``d_query`` is odd, or there are no such scores.
    """

    def __init__(
        self,
        d_model: int,
        n_keys: int = 128,
        k: int = 16,
        n_heads: int = 8,
        d_query: int | None = None,
        scores: Literal["softmax", "relu"] = "softmax",
        activation: Callable[[Tensor], Tensor] = F.gelu,
        norm: QueryNorm = "rms",
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if scores not in ("softmax", "relu"):
            raise ValueError(f'scores={scores!r} make no weights: give "softmax" or "relu"')
        self.scores, self.activation = scores, activation
        self.keys = ProductKeys(d_model, n_keys, k, n_heads, d_query, norm)
        self.up = nn.Embedding(n_keys**2, d_model, sparse=sparse)
        self.down = nn.Embedding(n_keys**2, d_model, sparse=sparse)
        nn.init.normal_(self.up.weight, std=d_model**-0.5)
        nn.init.zeros_(self.down.weight)

    def look_up(self, x: Float[Tensor, "batch time width"]) -> tuple[Scores, Rows]:
        """The experts of each head of each token, best first, and their weights.

        Shapes:
            x: ``[batch, time, width]``; results: ``[batch, time, heads, k]``
        """
        scores, rows = self.keys(x)
        return scores.softmax(-1) if self.scores == "softmax" else F.relu(scores), rows

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        weights, experts = self.look_up(x)
        experts, sparse = experts.flatten(2), self.up.sparse
        about_to_read(self.up, experts)
        about_to_read(self.down, experts)
        hidden = self.activation(match_rows(self.up.weight, experts, x, sparse=sparse))
        return sum_rows(self.down.weight, experts, hidden * weights.flatten(2), sparse=sparse).to(x.dtype)
