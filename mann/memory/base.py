"""The memory slot: an additive update to the residual stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from mann.context import Context


class Memory(nn.Module, ABC):
    r"""Something looked up and added to the residual stream before a chosen layer.

    .. math:: x_t \leftarrow x_t + m(x_{\le t}, \text{context}_{\le t})

    A memory is built as ``memory(d_model)`` (bind the rest with :func:`functools.partial`), starts as a no-op,
    and never lets a later token change an earlier update.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        """The update that is added to ``x``."""
