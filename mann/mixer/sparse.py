"""Native sparse attention: a coarse view of everything, a fine one of the blocks that matter, and a window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.banded import attend, window_masks
from mann.context import Context
from mann.gates import Gate
from mann.grouped import grouped_linear
from mann.norm import rms_norm, sum_dtype
from mann.projection import QueriesKeysValues, fold
from mann.rotary import rotate
from mann.topk import top_ids

Folded = Float[Tensor, "sequences time d_head"]
# More than any sum of attention weights.
_SURE = 1e30


class NativeSparseAttention(QueriesKeysValues):
    r"""Three softmax attentions over the past of a document, each with a learned gate.

    .. math::
        y_t = W_o \big[ g^c_t\, \mathrm{attention}(q_t; \tilde K, \tilde V) + g^s_t\, \mathrm{attention}(q_t; K_S, V_S)
        + g^w_t\, \mathrm{attention}(t - w < s \le t) \big], \qquad g_t = \sigma(W_g x_t)

    **Compressed:** every ``stride`` positions, a block of ``compressed`` keys is mapped to one, :math:`\tilde k =
    \mathrm{rms}(\varphi(k_{1..l}))`, and its values likewise; a query hears the blocks of its document that have ended.
    :math:`\varphi` is linear and begins as the mean. **Selected:** the weights of the compressed blocks are added up
    over the blocks of ``selection`` positions that they overlap, and a query hears all keys of the ``selected`` best,
    for each head by itself; its own block, the one before and the first of the document are always among them.
    **Window:** the last ``window`` positions. All three share queries, keys and values, which are those of
    :class:`~mann.CausalAttention` (shifted, normalised, rotated; a compressed key by its last position).

    Nothing of a size time x time is made but the weights of the compressed branch, ``stride`` times smaller. For the
    selected one queries are put in order by the block that they ask for, and each block is multiplied with all who do:
    keys are read once, not once for each query.

    Reference:
        Yuan et al., "Native sparse attention", 2025. arXiv:2502.11089. There each branch has keys and values of its
        own, heads select in groups, the compression is an MLP, and blocks and window are twice as long.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        compressed: Positions of a compressed block.
        stride: Positions from the begin of one to that of the next; must divide ``compressed`` and ``selection``.
        selection: Positions of a block to be selected.
        selected: Blocks that a query hears in full.
        window: Positions of the window.
        block: Queries per block, in the window.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width, a size is smaller than 1, or
            ``stride`` does not divide the blocks.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        compressed: int = 16,
        stride: int = 8,
        selection: int = 32,
        selected: int = 16,
        window: int = 256,
        block: int = 64,
        base: float = 10_000.0,
    ) -> None:
        super().__init__(d_model, n_heads, base)
        sizes = {"compressed": compressed, "stride": stride, "selection": selection}
        sizes |= {"selected": selected, "window": window}
        if small := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{', '.join(small)} must be at least 1")
        if compressed % stride or selection % stride:
            raise ValueError(
                f"stride={stride} must divide compressed={compressed} and selection={selection}, such as "
                "stride=16, compressed=32, selection=64"
            )
        self.compressed, self.stride, self.selection, self.selected = compressed, stride, selection, selected
        self.window, self.block = window, block
        mean = torch.eye(self.d_head).repeat_interleave(compressed, 1) / compressed
        self.compress_keys = nn.Parameter(mean)
        self.compress_values = nn.Parameter(mean.clone())
        self.gate = nn.Parameter(torch.zeros(3 * n_heads, d_model))
        self.opened = Gate()
        # They begin as something, which an orthogonal step would drown.
        for parameter in (self.compress_keys, self.compress_values, self.gate):
            parameter.role = "scalar"  # type: ignore[attr-defined]

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        gates = self.opened(F.linear(x, self.gate)).unflatten(-1, (3, self.n_heads))
        gates = gates.permute(2, 0, 3, 1).flatten(1, 2)[..., None]
        coarse, fine, near = self.branches(x, context)
        return self.merge(gates[0] * coarse + gates[1] * fine + gates[2] * near)

    def branches(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> tuple[Folded, Folded, Folded]:
        """What the compressed, the selected and the window branch read, ``[batch * heads, time, d_head]`` each."""
        q, k, v = self.heads(x, context, rotated=False)
        tables = self.tables(context, q.dtype)
        compressed = self._compress(k, v, tables)
        q, k, v = fold(rotate(q, *tables)), fold(rotate(k, *tables)), fold(v)
        coarse, weights = self._coarse(q, *compressed, context)
        ids, first = self._choose(weights, context)
        fine = attend_blocks(q, k, v, ids, first, self.selection)
        masks = window_masks(context, self.block, self.window, q.dtype)
        return coarse, fine, attend(q, k, v, masks, self.block, self.window)[0]

    def _ends(self, time: int, device: torch.device) -> Int[Tensor, " blocks"]:
        """The last position of each compressed block."""
        whole = max(0, time - self.compressed + 1)
        return torch.arange(0, whole, self.stride, device=device) + self.compressed - 1

    def _compress(self, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys, rotated, and values of all compressed blocks, ``[batch * heads, blocks, d_head]``."""
        if k.shape[1] < self.compressed:
            return fold(k[:, :0]), fold(v[:, :0])
        keys, values = (
            F.linear(part.unfold(1, self.compressed, self.stride).flatten(-2), weight)
            for part, weight in ((k, self.compress_keys), (v, self.compress_values))
        )
        ends = self._ends(k.shape[1], k.device)
        return fold(rotate(rms_norm(keys), *(table[ends] for table in tables))), fold(values)

    def _coarse(self, q: Folded, keys: Tensor, values: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Attention to the compressed blocks, and its weights without their gradient."""
        places, ends = torch.arange(q.shape[1], device=q.device), self._ends(q.shape[1], q.device)
        hidden = ends > places[:, None]
        if context.documents is not None:
            begins = context.documents[:, ends - (self.compressed - 1)]
            hidden = hidden | (context.documents[:, :, None] != begins[:, None])
            hidden = hidden.repeat_interleave(self.n_heads, 0)
        scores = torch.bmm(q, keys.transpose(1, 2))
        # Finite, as there may be no block yet.
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(hidden, 0.0)
        return torch.bmm(weights, values), weights.detach()

    @torch.no_grad()
    def _choose(
        self, weights: Float[Tensor, "sequences time blocks"], context: Context
    ) -> tuple[Int[Tensor, "sequences time selected"], Int[Tensor, "batch time"] | None]:
        """Blocks that each query hears, -1 where there are not so many; and where each query's document begins."""
        time, device = weights.shape[1], weights.device
        starts = torch.arange(0, time, self.selection, device=device)
        ends = self._ends(time, device)[:, None]
        shared = (ends + 1).minimum(starts + self.selection) - (ends + 1 - self.compressed).maximum(starts)
        scores = weights.float() @ (shared.clamp(min=0) / self.stride)
        own = torch.arange(time, device=device)[:, None] // self.selection
        number = torch.arange(len(starts), device=device)
        first = documents = context.documents
        if documents is not None:
            # Labels never fall, so a search in all of them finds where each begins.
            first = torch.searchsorted(documents.contiguous(), documents.contiguous())
        begin = torch.zeros_like(own) if first is None else first[..., None] // self.selection
        scores = scores.unflatten(0, (len(context.tokens), -1)).transpose(0, 1)
        # In this order if fewer are selected.
        for sure, block in enumerate((begin, own - 1, own), 1):
            scores = scores.masked_fill(number == block, sure * _SURE)
        scores = scores.masked_fill((number > own) | (number < begin), float("-inf"))
        scores = scores.transpose(0, 1).flatten(0, 1)
        ids = top_ids(scores, min(self.selected, len(starts)))
        return ids.masked_fill_(scores.gather(-1, ids) == float("-inf"), -1), first


def attend_blocks(
    q: Folded,
    k: Folded,
    v: Folded,
    ids: Int[Tensor, "sequences time selected"],
    first: Int[Tensor, "batch time"] | None,
    block: int,
) -> Folded:
    """Unscaled causal softmax attention of each query to the keys of some blocks.

    Args:
        q: Queries, batch and heads folded into ``sequences``.
        k: Keys.
        v: Values.
        ids: Blocks of each query, no block twice, its own among them; -1 for none.
        first: The first position that each query may hear; ``None``: the first of the row.
        block: Positions of a block.

    Shapes:
        q, k, v and output: ``[sequences, time, d_head]``; ids: ``[sequences, time, selected]``; first: ``[batch,
        time]``
    """
    sequences, time, n = ids.shape
    blocks = -(-time // block)
    k, v = (
        F.pad(part, (0, 0, 0, blocks * block - time)).reshape(sequences * blocks, block, -1)
        for part in (k, v)
    )
    place = torch.arange(time, device=q.device)[None, :, None]
    last = (place - ids * block).masked_fill(ids < 0, -1).flatten()
    groups = ids.clamp(min=0) + torch.arange(0, sequences * blocks, blocks, device=q.device)[:, None, None]
    # Pairs of a query and a block, block after block.
    groups, order = torch.sort(groups.flatten().int(), stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=q.device))
    numbers = torch.arange(sequences * blocks, dtype=groups.dtype, device=q.device)
    ends = torch.searchsorted(groups, numbers, right=True)
    scores = grouped_linear(_Ask.apply(q.flatten(0, 1), order, inverse), k, ends)
    within = torch.arange(block, dtype=torch.int32, device=q.device)
    hidden = within > last[order].int()[:, None]
    if first is not None:
        begin = (first.repeat_interleave(sequences // len(first), 0)[..., None] - ids * block).flatten()
        hidden = hidden | (within < begin[order].int()[:, None])
    shares, totals = _Softmax.apply(scores, hidden)
    read = grouped_linear(shares, v.transpose(1, 2), ends)
    # The softmax over all blocks, from that in each and its sum.
    totals = _Reorder.apply(totals, inverse, order).view(sequences * time, 1, n)
    read = _Reorder.apply(read, inverse, order).view(sequences * time, n, -1)
    return torch.bmm(totals.softmax(-1).to(read.dtype), read).view(sequences, time, -1)


class _Softmax(torch.autograd.Function):
    # Weights of what is not hidden, and the logarithm of their sum: its gradient needs nothing but the weights.
    @staticmethod
    def forward(ctx, scores: Tensor, hidden: Tensor):  # type: ignore[override]
        # Finite, as all may be hidden.
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        shares = scores.softmax(-1)
        ctx.save_for_backward(shares)
        # The largest weight is that of the largest score, one over the sum.
        total = scores.amax(-1).to(sum_dtype(scores)) - shares.amax(-1).to(sum_dtype(scores)).log()
        return shares, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_total: Tensor):  # type: ignore[override]
        (shares,) = ctx.saved_tensors
        found = torch._softmax_backward_data(grad, shares, -1, shares.dtype)
        return found.addcmul_(shares, grad_total[:, None].to(shares.dtype)), None


class _Reorder(torch.autograd.Function):
    # Autograd does not know that no row is taken twice, and would add up one by one.
    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Ask(torch.autograd.Function):
    # Each row as often as it has pairs, in their order.
    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(inverse)
        ctx.rows = len(x)
        return x.index_select(0, order.div(len(order) // len(x), rounding_mode="floor"))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.index_select(0, ctx.saved_tensors[0]).unflatten(0, (ctx.rows, -1)).sum(1), None, None
