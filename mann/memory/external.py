"""External memory: a source that is searched and a reader of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from mann.context import Context
from mann.memory.base import Memory
from mann.norm import rms_norm
from mann.readers import AttentionReader, Reader
from mann.sourced import Sourced
from retrieval import Source


class ExternalMemory(Sourced, Memory):
    r"""Looks up stored contexts like the present one and reads them.

    .. math:: u_t = \mathrm{reader}\big(\hat x_t, \; \mathrm{source}(x_{\le t})\big)

    Neighbours found beforehand (``context.neighbors``) are used when given; otherwise the source is searched with
    the tokens of the batch.

    Reference:
        Borgeaud et al., "Improving language models by retrieving from trillions of tokens", 2022. arXiv:2112.04426.

    Args:
        d_model: Width of the residual stream.
        source: Where to look.
        k: Neighbours per position.
        reader: ``reader(d_model, vocab_size=...)``: :class:`~mann.AttentionReader`, ``gnn.GraphReader``, or your own.
            What it takes of ``documents`` and ``exclude`` by these names it is given, as :class:`~mann.Context` has it.

    Shapes:
        input and output: ``[batch, time, width]``.
    """

    def __init__(
        self,
        d_model: int,
        source: Source,
        k: int = 16,
        reader: Callable[..., nn.Module] = AttentionReader,
    ) -> None:
        super().__init__()
        self.source = source
        self.k = k
        self.reader = reader(d_model, vocab_size=source.passages.vocab_size)
        asked = inspect.signature(self.reader.forward).parameters
        self._asks = [name for name in ("documents", "exclude") if name in asked]

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        neighbors = context.retrieve(self.source, self.k)
        reader = cast(Reader, self.reader)
        window = context.window(self.source, self.k, reader.before, reader.after)
        told = {name: getattr(context, name) for name in self._asks}
        return self.reader(rms_norm(x), neighbors, window, **told)
