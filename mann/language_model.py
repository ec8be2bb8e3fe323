"""What every language model here has: a state of each position, a readout of it, and their loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.state import State
from retrieval import Neighbors

__all__ = ["LanguageModel"]


class LanguageModel(nn.Module, ABC):
    """States that a readout turns into distributions over the next token.

    Attributes:
        readout: Called as a :class:`~mann.Readout`.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.
    """

    readout: nn.Module

    @abstractmethod
    def hidden(self, context: Context) -> Float[Tensor, "batch time width"]:
        """The normalised state that the readout sees."""

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        documents: Int[Tensor, "batch time"] | None = None,
        neighbors: Neighbors | None = None,
        state: State | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        context = Context(tokens, documents, neighbors, state, exclude)
        return self.readout(self.hidden(context), context)

    def loss(
        self,
        tokens: Int[Tensor, "batch time"],
        targets: Int[Tensor, "batch time"],
        documents: Int[Tensor, "batch time"] | None = None,
        neighbors: Neighbors | None = None,
        state: State | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Negative log-probability of each target in nats; 0 where the target is -100.

        All but the targets is what a :class:`~mann.Context` holds.
        """
        context = Context(tokens, documents, neighbors, state, exclude)
        return self.readout(self.hidden(context), context, targets)
