"""A readout that may point at what followed the neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.readers import ScoreFeatures
from mann.readout.base import IGNORE, Readout, SoftmaxReadout
from mann.sourced import Sourced
from retrieval import Source
from retrieval.rows import match_rows


class PointerReadout(Sourced, Readout):
    r"""Mixes the vocabulary distribution with one over the answers of the neighbours.

    .. math::
        p(v) = w_\varnothing \, \mathrm{softmax}(W x)_v + \sum_i w_i \, [y_i = v], \qquad
        w = \mathrm{softmax}_{i, \varnothing}
        \big( \langle W_q x, E[y_i] \rangle + \phi_i, \; \langle c, x \rangle + b \big)

    The weights of the neighbours and of "no neighbour" come out of one softmax, so retrieval that does not help is
    switched off position by position. Where kNN-LM fixes one mixture weight, this one is learned with the model. With a
    :class:`~mann.State` the search sees tokens of earlier segments too.

    A store may hold the text that is trained on, and with it the answers. So in train mode a loss wants to be told what
    to hide: ``exclude`` beside the tokens (-1: nothing), or neighbours found with it.

    References:
        Khandelwal et al., "Generalization through memorization" (kNN-LM), 2020. arXiv:1911.00172;
        Merity et al., "Pointer sentinel mixture models", 2016. arXiv:1609.07843.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.
        source: Where the neighbours come from.
        k: Neighbours per position.
        d_pointer: Width in which states and answers are compared.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.

    Raises:
        ValueError: In train mode, if nobody has said what a loss must not be given.
    """

    def __init__(
        self, d_model: int, vocab_size: int, source: Source, k: int = 16, d_pointer: int = 32
    ) -> None:
        super().__init__()
        self.source = source
        self.k = k
        self.softmax = SoftmaxReadout(d_model, vocab_size)
        self.query = nn.Linear(d_model, d_pointer, bias=False)
        self.answers = nn.Embedding(vocab_size, d_pointer)
        self.score = ScoreFeatures(k)
        self.sink = nn.Linear(d_model, 1)
        nn.init.normal_(self.answers.weight, std=d_pointer**-0.5)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.sink.weight)
        # One row is no matrix to make orthogonal.
        self.sink.weight.role = "scalar"  # type: ignore[attr-defined]
        nn.init.constant_(self.sink.bias, 3.0)

    def log_weights(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> tuple[Float[Tensor, "batch time k_and_sink"], Int[Tensor, "batch time k"]]:
        """Log mixture weights, -inf where there is no neighbour and the vocabulary's last; and the answers."""
        neighbors = context.retrieve(self.source, self.k)
        answers = context.window(self.source, self.k, 0, 1)[..., 1]
        match = match_rows(self.answers.weight, answers, self.query(x))
        logits = torch.cat([match + self.score(neighbors), self.sink(x).float()], -1)
        return torch.log_softmax(logits, -1), answers

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        if targets is not None:
            self.refuse_own(context, context.exclude)
        log_weights, answers = self.log_weights(x, context)
        if targets is None:
            return _mixed(self.softmax(x, context), log_weights, answers)
        nll = self.softmax(x, context, targets)
        hits = answers == targets[..., None]
        pointed = log_weights[..., :-1].masked_fill(~hits, float("-inf"))
        mixed = -torch.logsumexp(torch.cat([pointed, log_weights[..., -1:] - nll[..., None]], -1), -1)
        return mixed.masked_fill(targets == IGNORE, 0.0)


def _mixed(
    log_p: Float[Tensor, "batch time vocab"],
    log_weights: Float[Tensor, "batch time k_and_sink"],
    answers: Int[Tensor, "batch time k"],
) -> Float[Tensor, "batch time vocab"]:
    """The mixture, made by changing no more than the ``k`` places that answers have in the scaled vocabulary."""
    logs, sink = log_weights[..., :-1], log_weights[..., -1:]
    same = answers[..., None] == answers[..., None, :]
    # An answer that several neighbours share is changed once, by the first of them.
    again = same.tril(-1).any(-1)
    nobody = ~(same & (logs > float("-inf"))[..., None, :]).any(-1)
    # In logs, as the loss is: a weight may be too small for anything else. A sum of nothing but -inf would have NaN
    # for a gradient, even where its gain is not used.
    parts = torch.where(same, logs.masked_fill(nobody, 0.0)[..., None, :], float("-inf"))
    before, mass = log_p.gather(-1, answers) + sink, parts.logsumexp(-1)
    gain = torch.logaddexp(before, mass) - before
    return (log_p + sink).scatter_add_(-1, answers, gain.masked_fill(again | nobody, 0.0))
