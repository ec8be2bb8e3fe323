"""Latent attention: keys and values of all heads come from one short vector a position."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mann.banded import attend
from mann.context import Context
from mann.linear import Linear
from mann.norm import rms_norm
from mann.projection import fold, head_width
from mann.rotary import queries_keys


class LatentAttention(nn.Module):
    r"""Causal attention whose keys and values are made of a latent vector, which is all that decoding has to keep.

    .. math::
        c_t = \mathrm{rms}(W_c x_t), \qquad
        k_{t,h} = [\,W^K_h c_t ;\; W_r x_t\,], \qquad v_{t,h} = W^V_h c_t, \qquad q_{t,h} = W^Q_h x_t

    Only the part :math:`W_r x_t`, which all heads share, and its counterpart in the queries are rotated, so that the
    rest of a key follows from the latent wherever it stands. Keys are shifted, queries and keys normalised (both parts
    together) as in :class:`~mann.CausalAttention`; a shifted key follows from two latents. Decoding keeps ``d_latent +
    d_rotary`` numbers a position, :attr:`cache_bytes` bytes, in place of ``2 d_model``: with the defaults and heads of
    width 32 in a model of width 256, 576 bytes in float32 in place of 2,048.

    Reference:
        DeepSeek-AI, "DeepSeek-V2", 2024. arXiv:2405.04434. There keys are neither shifted nor normalised, which lets
        the matrices of queries and keys be multiplied beforehand.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        d_latent: Width of the latent vector; by default half of ``d_model``.
        d_rotary: Width of the rotated part, even; by default half of a head.
        d_query: Width of a latent vector that queries are made of; ``None``: they are made of the input.
        block: Queries per block.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width, a width is smaller than 1, or
            ``d_rotary`` is odd.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_latent: int | None = None,
        d_rotary: int | None = None,
        d_query: int | None = None,
        block: int = 64,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, head_width(d_model, n_heads)
        self.d_latent = d_model // 2 if d_latent is None else d_latent
        self.d_rotary = max(2, self.d_head // 4 * 2) if d_rotary is None else d_rotary
        if self.d_latent < 1 or (d_query is not None and d_query < 1):
            raise ValueError(
                f"d_latent={d_latent} and d_query={d_query} must be at least 1 (or d_query None)"
            )
        if self.d_rotary < 2 or self.d_rotary % 2:
            raise ValueError(f"d_rotary={d_rotary} cannot be rotated in pairs: give an even width, 2 or more")
        self.block, self.base = block, base
        width = self.d_head + self.d_rotary
        self.down = Linear(d_model, self.d_latent)
        self.rotary = Linear(d_model, self.d_rotary)
        self.up = Linear(self.d_latent, 2 * d_model)
        # Each is made orthogonal by itself.
        self.up.weight.matrices = 2  # type: ignore[attr-defined]
        self.query_down = None if d_query is None else Linear(d_model, d_query)
        self.query = Linear(d_model if d_query is None else d_query, n_heads * width)
        self.out = Linear(d_model, d_model)
        # As in causal attention.
        self.shift = nn.Parameter(torch.tensor([1.5, -1.5]).repeat(n_heads)[:n_heads, None])
        self.scale = nn.Parameter(torch.full((n_heads, 1), 4 * width**-0.5))
        nn.init.zeros_(self.out.weight)

    @property
    def cache_bytes(self) -> int:
        """Bytes that decoding has to keep of each position, in the type of the weights."""
        return (self.d_latent + self.d_rotary) * self.down.weight.element_size()

    def latents(
        self, x: Float[Tensor, "batch time width"]
    ) -> tuple[Float[Tensor, "batch time d_latent"], Float[Tensor, "batch time d_rotary"]]:
        """All that keys and values are made of."""
        return rms_norm(self.down(x)), self.rotary(x)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        latent, rotary = self.latents(x)
        k, v = self.up(latent).unflatten(-1, (2, self.n_heads, self.d_head)).unbind(2)
        # Rotations turn the first half of a vector with the second: each half begins with its part of what is turned.
        halves = zip(rotary[:, :, None].chunk(2, -1), k.chunk(2, -1), strict=True)
        k = torch.cat(
            [p for turned, still in halves for p in (turned.expand(-1, -1, self.n_heads, -1), still)], -1
        )
        q = x if self.query_down is None else rms_norm(self.query_down(x))
        q = self.query(q).view_as(k)
        inside = None if context.documents is None else context.same_document(1)
        share = torch.sigmoid(self.shift).to(q.dtype)
        q, k = queries_keys(q, k, share, self.scale, self._tables(context, q.dtype), inside)
        masks = context.attention_masks(self.block, q.dtype)
        y = attend(fold(q), fold(k), fold(v), masks, self.block)[0]
        return self.out(y.unflatten(0, (len(x), self.n_heads)).transpose(1, 2).flatten(2))

    def _tables(self, context: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rotations that leave all but the first ``d_rotary / 2`` of each half where it is."""
        cosine, sine = (
            table.unflatten(-1, (2, -1)) for table in context.rotations(self.d_rotary, self.base, dtype)
        )
        still = cosine.new_zeros(1, 1, 1).expand(len(cosine), 2, self.d_head // 2)
        cosine, sine = (torch.cat([cosine, still + 1], -1), torch.cat([sine, still], -1))
        return cosine.flatten(1)[:, None, None], sine.flatten(1)[:, None, None]
