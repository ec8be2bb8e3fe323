"""The readout slot: from the last hidden state to a distribution over the vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.cross_entropy import linear_cross_entropy
from mann.norm import sum_dtype

IGNORE = -100


class Readout(nn.Module, ABC):
    r"""A distribution over the next token. Built as ``readout(d_model, vocab_size)``.

    With targets it returns the loss instead: a loss needs no mixture over the whole vocabulary. In eval mode it must
    equal the negative entry of the log-probabilities at the target, for models are scored by it, and comparisons refuse
    an arm of which that is not so; in train mode it may have further terms.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.
    """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        """Log-probabilities of the next token; with targets their negative log-probabilities, 0 where -100."""


class SoftmaxReadout(Readout):
    r"""The usual head, :math:`p = \mathrm{softmax}(W x)`, starting at the uniform distribution.

    Args:
        d_model: Width of the residual stream.
        vocab_size: Number of tokens.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.
    """

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        self.head.weight.role = "head"  # type: ignore[attr-defined]

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        if targets is None:
            logits = self.head(x)
            return F.log_softmax(logits, -1, dtype=sum_dtype(logits))
        ignored = targets == IGNORE
        nll = linear_cross_entropy(
            x.flatten(0, 1), self.head.weight, targets.masked_fill(ignored, 0).flatten()
        )
        return nll.view_as(targets).masked_fill(ignored, 0.0)
