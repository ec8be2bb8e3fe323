"""A readout for a model that has its head already."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mann.context import Context
from mann.norm import sum_dtype
from mann.readout.base import IGNORE, Readout, SoftmaxReadout

__all__ = ["OwnHead", "use_own_head"]


class _Size(nn.Module):
    # Readouts ask how many tokens there are, and some for weights, which are not theirs to use.
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.out_features = vocab_size

    @property
    def weight(self) -> Tensor:
        raise ValueError(
            "this readout multiplies by the weights of the head, and a model that has a head may do more than that: "
            "attach one that mixes distributions, as KNNReadout, PointerReadout and CacheReadout do"
        )

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class OwnHead(Readout):
    """The distribution that the model itself gives, from logits it has computed, whatever it does to them.

    Args:
        vocab_size: Number of tokens.

    Shapes:
        x: ``[batch, time, width]``; targets and loss: ``[batch, time]``; log-probabilities:
        ``[batch, time, vocab]``.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.head = _Size(vocab_size)
        self._logits = WeakTensorKeyDictionary()

    def know(self, x: Float[Tensor, "batch time width"], logits: Float[Tensor, "batch last vocab"]) -> None:
        """Take note of the logits of states; those of the last positions are enough where the others are not used."""
        self._logits[x] = F.pad(logits, (0, 0, x.shape[1] - logits.shape[1], 0))

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        context: Context,
        targets: Int[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        logits = self._logits.get(x)
        if logits is None:
            raise ValueError(
                "logits are known of states that the model has just computed: ask it for them first"
            )
        if targets is None:
            return F.log_softmax(logits, -1, dtype=sum_dtype(logits))
        wide = logits.to(sum_dtype(logits)).flatten(0, 1)
        return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORE, reduction="none").view_as(
            targets
        )


def use_own_head(readout: nn.Module, vocab_size: int) -> OwnHead:
    """Let a readout mix with what the model says, in place of a head that it would have to learn.

    Args:
        readout: With a :class:`~mann.SoftmaxReadout` named ``softmax``.
        vocab_size: Number of tokens.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(getattr(readout, "softmax", None), SoftmaxReadout):
        raise ValueError(
            f"{type(readout).__name__} mixes with no distribution of the vocabulary: attach a readout that has one "
            "under the name softmax, as KNNReadout, PointerReadout and CacheReadout do"
        )
    head = OwnHead(vocab_size)
    readout.softmax = head
    return head
