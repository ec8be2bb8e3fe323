"""Compressive memory: one matrix and one vector per head, to which every chunk adds what it said."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mann.chunks import Chunks, document_chunks
from mann.context import Context
from mann.gates import Gate
from mann.linear import Linear
from mann.memory.base import Memory
from mann.norm import rms_norm, sum_dtype
from mann.projection import head_width
from mann.shift import without_autocast
from mann.state import Streaming


class CompressiveMemory(Streaming, Memory):
    r"""The memory of Infini-attention: linear attention to all chunks before one's own.

    .. math::
        r_t = \frac{M \, \phi(q_t)}{z \cdot \phi(q_t) + \epsilon}, \qquad \phi = \mathrm{ELU} + 1, \qquad
        u_t = W_o \, (\sigma(g) \odot r_t)

    .. math::
        M \leftarrow M + \sum_{s \in \text{chunk}}
        \Big(v_s - \Big[\frac{M \, \phi(k_s)}{z \cdot \phi(k_s) + \epsilon}\Big]_\text{delta}\Big) \phi(k_s)^\top,
        \qquad z \leftarrow z + \sum_s \phi(k_s)

    with one gate :math:`g` per head; the part in brackets, what the memory says already, is taken off if ``delta``.
    Local attention stays with the mixer. A position reads what the complete chunks before its own have written. Each
    document is cut into chunks of its own and begins with nothing; a :class:`~mann.State` carries :math:`M`, :math:`z`
    and what the chunk begun has to add.

    Reference:
        Munkhdalai et al., "Leave no context behind: efficient infinite context transformers with Infini-attention",
        2024. arXiv:2404.07143.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model``.
        chunk: Positions after which the memory is written.
        delta: Whether only what is new is written.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model``, or a chunk has no positions.
    """

    def __init__(self, d_model: int, n_heads: int = 2, chunk: int = 32, delta: bool = True) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads, even=False)
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: give at least 1 position, such as 32")
        self.n_heads, self.d_head = n_heads, d_head
        self.chunk, self.delta = chunk, delta
        self.qkv = Linear(d_model, 3 * d_model)
        # Each is made orthogonal by itself.
        self.qkv.weight.matrices = 3  # type: ignore[attr-defined]
        self.gate = nn.Parameter(torch.zeros(n_heads, 1))
        self.opened = Gate()
        self.out = Linear(d_model, d_model)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        kind = sum_dtype(x)
        q, k, v = self.qkv(x).to(kind).view(batch, time, 3, self.n_heads, self.d_head).unbind(2)
        # The last column of the values are ones, of which the matrix keeps the sum of keys.
        v = F.pad(v, (0, 1), value=1.0)
        nothing = v.new_zeros(()).expand(batch, self.n_heads, self.d_head, self.d_head + 1)
        known = {
            "matrix": nothing,
            "pending": nothing,
            "filled": context.tokens.new_zeros(()).expand(batch),
        }
        held = known if context.state is None else context.state.read(self, known)
        chunks = document_chunks(context, self.chunk, None if context.state is None else held["filled"])
        with without_autocast(x):
            q, k, v = (
                chunks.split(part).transpose(2, 3)
                for part in (F.elu(rms_norm(q)) + 1, F.elu(rms_norm(k)) + 1, v)
            )
            y, matrix, pending = self._remember(chunks, q, k, v, held["matrix"], held["pending"])
            y = chunks.merge(y.transpose(2, 3)) * self.opened(self.gate)
        if context.state is not None and chunks.filled is not None:
            context.state.write(self, matrix=matrix, pending=pending, filled=chunks.filled)
        return self.out(y.reshape(batch, time, width).to(x.dtype))

    def _remember(
        self, chunks: Chunks, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor, pending: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen = []
        for n in range(chunks.count):
            if chunks.begins is not None and n:
                old = ~chunks.begins[:, n, None, None, None]
                matrix, pending = matrix * old, pending * old
            seen.append(matrix)
            if chunks.complete is None and n == chunks.count - 1:
                break
            new = v[:, n]
            if self.delta:
                new = torch.cat([new[..., :-1] - self._answer(k[:, n], matrix), new[..., -1:]], -1)
            pending = pending + k[:, n].mT @ new
            if chunks.complete is None:
                matrix, pending = matrix + pending, torch.zeros_like(pending)
            else:
                done = chunks.complete[:, n, None, None, None]
                matrix, pending = matrix + pending * done, pending * ~done
        return self._answer(q, torch.stack(seen, 1)), matrix, pending

    @staticmethod
    def _answer(key: Tensor, matrix: Tensor) -> Tensor:
        found = key @ matrix
        return found[..., :-1] / (found[..., -1:] + 1e-6)
