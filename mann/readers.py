"""Readers: from a query and its neighbours to an update of the residual stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retrieval import Neighbors
from retrieval.rows import match_rows, sum_rows


class Reader(nn.Module, ABC):
    r"""Turns what was retrieved into an update. Built as ``reader(d_model, vocab_size=...)``.

    A reader is given normalised states, starts as a no-op and looks at each position's own neighbours only.

    Attributes:
        before: Tokens of a neighbour's passage it reads before the matched position.
        after: Tokens it reads after it; the first of them is the neighbour's *answer*.

    Shapes:
        x and output: ``[batch, time, width]``; neighbors: ``[batch, time, k]``;
        window: ``[batch, time, k, before + 1 + after]``.
    """

    before: int
    after: int

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        neighbors: Neighbors,
        window: Int[Tensor, "batch time k window"],
    ) -> Float[Tensor, "batch time width"]:
        """The update of ``x``."""


class ScoreFeatures(nn.Module):
    r"""How much a neighbour counts by its score and rank alone.

    .. math:: \phi_i = a \, s_i + b \, \log(1 + \max(0, s_i)) + r_i

    with learned :math:`a, b` and one learned number :math:`r_i` per rank. The first term suits similarities, the
    second match lengths.

    Args:
        k: Largest number of neighbours.

    Shapes:
        neighbors and output: ``[batch, time, k]``.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.rank = nn.Parameter(torch.zeros(k))

    def forward(self, neighbors: Neighbors) -> Float[Tensor, "batch time k"]:
        if neighbors.k > len(self.rank):
            raise ValueError(
                f"{neighbors.k} neighbours for a reader of at most {len(self.rank)}: build it with k={neighbors.k}, "
                f"as in partial(AttentionReader, k={neighbors.k})"
            )
        scores = neighbors.scores
        weight = scores * self.slope[0] + torch.log1p(scores.clamp(min=0)) * self.slope[1]
        return (weight + self.rank[: neighbors.k]).masked_fill(~neighbors.mask, float("-inf"))


class AttentionReader(Reader):
    r"""Attends to the answers of the neighbours.

    .. math::
        u_t = W_o \sum_i \alpha_{t,i} \, V[y_{t,i}], \qquad
        \alpha_{t,\cdot} = \mathrm{softmax}_{i, \varnothing}
        \big( \langle W_q x_t, K[y_{t,i}] \rangle + \phi_{t,i}, \; b_\varnothing \big)

    where :math:`y_{t,i}` is the token that followed neighbour :math:`i` and :math:`\varnothing` is a learned sink, so
    that bad neighbours cost nothing. Keys and values are tables over the vocabulary: what a projection of an
    embedding would give, without computing it per neighbour.

    References:
        Wu et al., "Memorizing transformers", 2022. arXiv:2203.08913;
        Khandelwal et al., "Generalization through memorization", 2020. arXiv:1911.00172.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        d_read: Width of keys and values.
        k: Largest number of neighbours.

    Shapes:
        x and output: ``[batch, time, width]``; neighbors: ``[batch, time, k]``; window: ``[batch, time, k, 2]``.
    """

    before = 0
    after = 1

    def __init__(self, d_model: int, vocab_size: int, d_read: int = 64, k: int = 16) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_read, bias=False)
        self.keys = nn.Embedding(vocab_size, d_read)
        self.values = nn.Embedding(vocab_size, d_read)
        self.score = ScoreFeatures(k)
        self.sink = nn.Parameter(torch.zeros(()))
        self.out = nn.Linear(d_read, d_model, bias=False)
        nn.init.normal_(self.keys.weight, std=d_read**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        neighbors: Neighbors,
        window: Int[Tensor, "batch time k window"],
    ) -> Float[Tensor, "batch time width"]:
        answers = window[..., self.before + 1]
        match = match_rows(self.keys.weight, answers, self.query(x))
        logits = match + self.score(neighbors)
        logits = torch.cat([logits, self.sink.expand(*logits.shape[:-1], 1)], -1)
        share = torch.softmax(logits, -1)[..., :-1]
        return self.out(sum_rows(self.values.weight, answers, share))
