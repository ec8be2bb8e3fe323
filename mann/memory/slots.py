"""Memory slots: a few vectors that are read by attention and rewritten, through gates, once a chunk."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mann.chunks import document_chunks
from mann.context import Context
from mann.gates import Gate
from mann.linear import Linear
from mann.memory.base import Memory
from mann.norm import rms_norm
from mann.projection import head_width
from mann.state import Streaming


class MemorySlots(Streaming, Memory):
    r"""A bank of vectors :math:`M`, looked at by every position and changed by every complete chunk :math:`X`.

    .. math::
        r_t = \mathrm{attention}(W_q \hat x_t, \, W_k \hat M, \, W_v \hat M), \qquad
        u_t = W_o \, (\sigma(W_g r_t + b_g) \odot r_t)

    .. math::
        U = \mathrm{attention}(W'_q \hat M, \, W'_k \hat X, \, W'_v \hat X), \qquad
        M \leftarrow \sigma(W_f U + b_f) \odot M + \sigma(W_i U + b_i) \odot \tanh U

    A position reads what the chunks before its own have written. Each document is cut into chunks of its own and
    begins with learned slots; a :class:`~mann.State` carries the slots, and the positions of a chunk that is not yet
    complete, to the next segment.

    Reference:
        Kang et al., "LM2: large memory models", 2025. arXiv:2502.06049.

    Args:
        d_model: Width of the residual stream and of a slot.
        n_slots: Number of slots.
        n_heads: Heads of both attentions; must divide ``d_model``.
        chunk: Positions after which the slots are rewritten.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model``, or there are no slots or no positions in a chunk.
    """

    def __init__(self, d_model: int, n_slots: int = 16, n_heads: int = 2, chunk: int = 16) -> None:
        super().__init__()
        head_width(d_model, n_heads, even=False)
        if min(n_slots, chunk) < 1:
            raise ValueError(f"n_slots={n_slots} and chunk={chunk} must both be at least 1")
        self.n_heads, self.chunk = n_heads, chunk
        self.start = nn.Parameter(torch.randn(n_slots, d_model))
        self.start.role = "embedding"  # type: ignore[attr-defined]
        self.query, self.read = Linear(d_model, d_model), Linear(d_model, 2 * d_model)
        self.ask, self.write = Linear(d_model, d_model), Linear(d_model, 2 * d_model)
        self.gate, self.change = Linear(d_model, d_model), Linear(d_model, 2 * d_model)
        for layer in (self.read, self.write, self.change):
            # Each is made orthogonal by itself.
            layer.weight.matrices = 2  # type: ignore[attr-defined]
        self.gate_bias = nn.Parameter(torch.zeros(d_model))
        self.opened = Gate()
        # What is there is mostly kept.
        self.change_bias = nn.Parameter(torch.tensor([2.0, 0.0]).repeat_interleave(d_model))
        self.out = Linear(d_model, d_model)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, _, width = x.shape
        x = rms_norm(x)
        known = {
            "slots": self.start.expand(batch, *self.start.shape),
            "pending": x.new_zeros(()).expand(batch, self.chunk, width),
            "filled": context.tokens.new_zeros(()).expand(batch),
        }
        held = known if context.state is None else context.state.read(self, known)
        chunks = document_chunks(context, self.chunk, None if context.state is None else held["filled"])
        text = chunks.split(x)
        if context.state is not None:
            # Places that an earlier segment has taken are empty in this one.
            text = torch.cat([text[:, :1] + held["pending"][:, None].to(text.dtype), text[:, 1:]], 1)
        keys, values = (self._heads(part) for part in self.write(text).chunk(2, -1))
        slots, seen = held["slots"], []
        for n in range(chunks.count):
            if chunks.begins is not None and n:
                slots = torch.where(chunks.begins[:, n, None, None], self.start, slots)
            seen.append(slots)
            if chunks.complete is None and n == chunks.count - 1:
                break
            asked = self._attend(self._heads(self.ask(rms_norm(slots))), keys[:, n], values[:, n])
            keep, add = torch.sigmoid(self.change(asked) + self.change_bias).chunk(2, -1)
            written = keep * slots + add * torch.tanh(asked)
            slots = (
                written
                if chunks.complete is None
                else torch.where(chunks.complete[:, n, None, None], written, slots)
            )
        slot_keys, slot_values = (
            self._heads(part) for part in self.read(rms_norm(torch.stack(seen, 1))).chunk(2, -1)
        )
        found = chunks.merge(self._attend(self._heads(self.query(text)), slot_keys, slot_values))
        if context.state is not None and chunks.places is not None and chunks.filled is not None:
            rows, last = torch.arange(batch, device=x.device), chunks.places[:, -1] // self.chunk
            pending = torch.where((chunks.filled > 0)[:, None, None], text[rows, last], 0.0)
            context.state.write(self, slots=slots, pending=pending, filled=chunks.filled)
        return self.out(self.opened(self.gate(found) + self.gate_bias) * found)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of split heads, joined again."""
        share = ((query @ key.mT) * query.shape[-1] ** -0.5).softmax(-1)
        return (share.to(value.dtype) @ value).transpose(-2, -3).flatten(-2)
