"""Attention whose values are added to from a memory: value embeddings, of tokens or of whatever is looked up."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from mann.banded import attend
from mann.context import Context
from mann.gates import Gate
from mann.linear import Linear
from mann.projection import QueriesKeysValues, fold


class ValueEmbeddingAttention(QueriesKeysValues):
    r"""Causal attention with a memory on the value path.

    .. math::
        v'_t = v_t + 2\,\sigma(W_g \hat x_t) \odot m(\hat x_{\le t}, \text{context}_{\le t})

    with one gate per head, and queries, keys and the rest as in :class:`~mann.CausalAttention`. What is looked up for a
    position is read by every later position that attends to it, and by itself, where a memory in the residual stream
    (:class:`~mann.memory.Memory` in the memory slot) tells a position about its own past alone. Gates begin at one,
    memories at nothing, so the layer begins as CausalAttention bit for bit. With ``NGramMemory(orders=(1,))`` these are
    the value embeddings of tokens that small language models are sped up with.

    References:
        Zhou et al., "Value residual learning", 2024. arXiv:2410.17897;
        Jordan et al., modded-nanogpt, 2024 (value embeddings). https://github.com/KellerJordan/modded-nanogpt

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        values: ``values(d_model)``, a memory: called as ``memory(x, context)``, it gives ``[batch, time, width]``.
        block: Queries per block.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        values: Callable[[int], nn.Module],
        block: int = 64,
        base: float = 10_000.0,
    ) -> None:
        super().__init__(d_model, n_heads, base)
        self.block = block
        self.gate = Linear(d_model, n_heads)
        self.gate.weight.role = "scalar"  # type: ignore[attr-defined]
        nn.init.zeros_(self.gate.weight)
        self.opened = Gate()
        self.values = values(d_model)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        q, k, v = self.heads(x, context)
        gate = 2 * self.opened(self.gate(x))
        v = v + gate[..., None] * self.values(x, context).view_as(v)
        masks = context.attention_masks(self.block, q.dtype)
        return self.merge(attend(fold(q), fold(k), fold(v), masks, self.block)[0])
