"""End-to-end memory network: a question looks at the sentences of a story several times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mann.networks.base import at_least_one

PADDING = 0


class EndToEndMemoryNetwork(nn.Module):
    r"""Answers a question about a story in several hops of attention over its sentences.

    .. math::
        m_i = \textstyle\sum_j l_j \circ A x_{ij} + T_A(i), \quad
        c_i = \textstyle\sum_j l_j \circ C x_{ij} + T_C(i), \quad
        u \leftarrow u + \textstyle\sum_i \mathrm{softmax}_i(u^\top m_i) \, c_i, \quad
        p = \mathrm{softmax}(W u)

    beginning with the question, :math:`u = \sum_j l_j \circ B q_j`. Position encoding, :math:`l_{jk} = (1 - j/J) -
    (k/d)(1 - 2j/J)` for word :math:`j` of :math:`J` and dimension :math:`k` of :math:`d`, tells the order of words;
    temporal encoding :math:`T(i)`, a vector for each age of a sentence, tells the order of sentences. Hops are tied as
    neighbours: :math:`A` of a hop is :math:`C` of the one before, :math:`B` is the first :math:`A`, and :math:`W` the
    last :math:`C`. With ``linear`` the softmax of the hops is left away (linear start): set :attr:`linear` to
    ``False`` once that has been learned.

    Reference:
        Sukhbaatar et al., "End-to-end memory networks", 2015. arXiv:1503.08895.

    Args:
        vocab_size: Number of words; 0 is none.
        d_model: Width of embeddings.
        n_hops: Hops.
        n_ages: Ages of sentences that are told apart: all older ones are as old as the oldest.
        noise: Share of sentences behind which, in training, age goes on by one more, so that ages are not learned by
            heart.
        linear: Hops without softmax.

    Shapes:
        sentences: ``[batch, sentences, words]``, 0 where there is no word, and rows of zeros where there is no
        sentence; question: ``[batch, words]``; output: log-probabilities ``[batch, vocab]``.

    Raises:
        ValueError: If a size is smaller than 1, or ``noise`` no share.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 20,
        n_hops: int = 3,
        n_ages: int = 50,
        noise: float = 0.1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        at_least_one(vocab_size=vocab_size, d_model=d_model, n_hops=n_hops, n_ages=n_ages)
        if not 0 <= noise < 1:
            raise ValueError(f"noise={noise} of the sentences: give a share from 0 to below 1")
        self.vocab_size, self.d_model, self.n_ages, self.noise = vocab_size, d_model, n_ages, noise
        self.linear = linear
        words = [nn.Embedding(vocab_size, d_model, padding_idx=PADDING) for _ in range(n_hops + 1)]
        ages = [nn.Embedding(n_ages, d_model) for _ in range(n_hops + 1)]
        for table in (*words, *ages):
            nn.init.normal_(table.weight, std=0.1)
        with torch.no_grad():
            for table in words:
                table.weight[PADDING] = 0.0
        self.words, self.ages = nn.ModuleList(words), nn.ModuleList(ages)

    def forward(
        self,
        sentences: Int[Tensor, "batch sentences words"],
        question: Int[Tensor, "batch question_words"],
    ) -> Float[Tensor, "batch vocab"]:
        return F.log_softmax(self._scores(sentences, question), -1)

    def loss(
        self,
        sentences: Int[Tensor, "batch sentences words"],
        question: Int[Tensor, "batch question_words"],
        answers: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Negative log-probability of each answer in nats."""
        return F.cross_entropy(self._scores(sentences, question), answers, reduction="none")

    def _scores(self, sentences: Tensor, question: Tensor) -> Tensor:
        there = (sentences != PADDING).any(-1)
        when, weights = self._ages(there), position_encoding(sentences)
        first, *others = self._tables()
        u = encoded(first[0], question, position_encoding(question))
        told = encoded(first[0], sentences, weights) + first[1](when)
        for words, ages in others:
            match = torch.bmm(told, u[..., None])[..., 0]
            if not self.linear:
                # Finite, so that a story without sentences is nothing and not NaN.
                match = torch.softmax(match.masked_fill(~there, -1e30), -1)
            told = encoded(words, sentences, weights) + ages(when)
            u = u + torch.bmm(match.masked_fill(~there, 0.0)[:, None], told)[:, 0]
        return F.linear(u, self.words[-1].get_parameter("weight"))

    def _tables(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.words[hop], self.ages[hop]) for hop in range(len(self.words))]

    def _ages(self, there: Bool[Tensor, "batch sentences"]) -> Int[Tensor, "batch sentences"]:
        """How many sentences have come after each."""
        steps = there.long()
        if self.training and self.noise:
            steps = steps * (1 + (torch.rand_like(there, dtype=torch.float32) < self.noise))
        after = steps.flip(1).cumsum(1).flip(1) - steps
        return after.clamp(max=self.n_ages - 1)


def position_encoding(words: Int[Tensor, "*batch words"]) -> Float[Tensor, "*batch 2 words"]:
    """Weights of each word in the two sums that position encoding is made of; zeros where there is no word.

    Args:
        words: 0 where there is none.

    Shapes:
        words: ``[..., words]``; output: ``[..., 2, words]``.
    """
    there = words != PADDING
    share = there.cumsum(-1) / there.sum(-1, keepdim=True).clamp(min=1)
    return torch.stack([1 - share, 2 * share - 1], -2) * there[..., None, :]


def encoded(
    table: nn.Module, words: Int[Tensor, "*batch words"], weights: Float[Tensor, "*batch 2 words"]
) -> Float[Tensor, "*batch width"]:
    """Sentences: their words' vectors, weighted by position and dimension, added up.

    Args:
        table: Embeds words.
        words: The words.
        weights: Their :func:`position_encoding`.

    Shapes:
        words: ``[..., words]``; weights: ``[..., 2, words]``; output: ``[..., width]``.
    """
    vectors = table(words)
    flat = torch.bmm(weights.flatten(0, -3).to(vectors.dtype), vectors.flatten(0, -3))
    width = vectors.shape[-1]
    share = torch.arange(1, width + 1, device=vectors.device, dtype=vectors.dtype) / width
    one, more = flat.unbind(1)
    return torch.addcmul(one, more, share).view(*words.shape[:-1], width)
