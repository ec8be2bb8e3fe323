"""Neural memory: a small network that learns the text by gradient steps while it reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.chunks import Chunks, document_chunks
from mann.context import Context
from mann.linear import Linear
from mann.memory.base import Memory
from mann.norm import rms_norm, sum_dtype
from mann.products import products
from mann.projection import head_width
from mann.shift import previous, without_autocast
from mann.state import Streaming


class NeuralMemory(Streaming, Memory):
    r"""The weights :math:`M` of a network per head, trained on the text as it passes to answer keys with values.

    .. math::
        \nabla_t = \nabla_M \lVert f_M(k_t) - v_t \rVert^2 \big|_{M = A}, \qquad
        S_t = \eta_t S_{t-1} - \theta_t \nabla_t, \qquad M_t = (1 - \alpha_t) M_{t-1} + S_t, \qquad
        u_t = W_o \, \mathrm{rms}(f_A(q_t))

    where :math:`A` are the weights at the beginning of the chunk that :math:`t` is in, so that a chunk is computed
    at once and a position reads what the chunks before its own have left, nothing later. The network is

    .. math:: f_M(k) = k + W_2 \, \mathrm{SiLU}(W_1 k) / \sqrt{h}

    or :math:`k + W k` without a hidden layer. Gates are functions of :math:`x_t`,
    :math:`\theta_t = (1 - \eta_t) \, \sigma(w x_t) \, \rho / \text{chunk}`: the steps of one chunk and their momentum
    add up to :math:`\rho` at most, so that without a hidden layer a chunk of one and the same key does not overshoot.
    The input is normalised, queries, keys and values have unit length, and keys are mixed with the ones before them as
    in :class:`~mann.CausalAttention`. Each document is cut into chunks of its own and begins with learned weights; a
    :class:`~mann.State` carries the weights to the next segment.

    What a chunk leaves is a sum over its positions, weighted by products of gates. No weights of single positions are
    ever made, and the inner gradients are written out, so that the outer ones are first derivatives.

    Reference:
        Behrouz et al., "Titans: learning to memorize at test time", 2025. arXiv:2501.00663.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model``.
        chunk: Positions that see the same weights.
        hidden: Hidden units of the network of a head; 0: it is linear, ``None``: four times the width of a head.
        rate: :math:`\rho`; at 0.5 a linear memory can get from any answer to the right one in one chunk, not beyond.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model``, or a chunk has no positions.
    """

    def __init__(
        self, d_model: int, n_heads: int = 2, chunk: int = 32, hidden: int | None = None, rate: float = 0.5
    ) -> None:
        super().__init__()
        d_head = head_width(d_model, n_heads, even=False)
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: give at least 1 position, such as 32")
        self.n_heads, self.d_head = n_heads, d_head
        self.chunk = chunk
        self.step = rate / chunk
        hidden = 4 * self.d_head if hidden is None else hidden
        self.qkv = Linear(d_model, 3 * d_model)
        # Each is made orthogonal by itself.
        self.qkv.weight.matrices = 3  # type: ignore[attr-defined]
        self.gates = Linear(d_model, 3 * n_heads)
        # Of the steps, what is kept of the momentum, what decays. A weight has halved after about 300 positions.
        self.bias = nn.Parameter(torch.tensor([2.0, 0.0, -6.0])[:, None].repeat(1, n_heads))
        self.shift = nn.Parameter(torch.tensor([1.5, -1.5]).repeat(n_heads)[:n_heads, None])
        start = torch.zeros(n_heads, 2 if hidden else 1, self.d_head, hidden or self.d_head)
        if hidden:
            nn.init.normal_(start[:, 0])
        self.start = nn.Parameter(start)
        self.start.role = "embedding"  # type: ignore[attr-defined]
        self.out = Linear(d_model, d_model)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        kind = sum_dtype(x)
        # Gates and inner steps are made for inputs of unit size: of larger ones two layers diverge.
        x = rms_norm(x)
        q, k, v = self.qkv(x).view(batch, time, 3, self.n_heads, self.d_head).unbind(2)
        begin = self.start.to(kind).expand(batch, *self.start.shape)
        start = {
            "anchor": begin,
            "weights": begin,
            "momentum": torch.zeros_like(self.start, dtype=kind).expand_as(begin),
            "key": k[:, 0],
            "filled": context.tokens.new_zeros(()).expand(batch),
        }
        held = start if context.state is None else context.state.read(self, start)
        last = k[:, -1]
        k = torch.lerp(k, previous(k, held["key"], context), torch.sigmoid(self.shift).to(k.dtype))
        chunks = document_chunks(context, self.chunk, None if context.state is None else held["filled"])
        gates = self.gates(x).to(kind).unflatten(-1, (3, self.n_heads)) + self.bias
        with without_autocast(x):
            left, total = weighted(chunks, self.step, gates)
            # A root mean square of one over the root of the width is unit length.
            q, k, v = (rms_norm(part.to(kind)) * self.d_head**-0.5 for part in (q, k, v))
            q, k, v = (chunks.split(part).permute(1, 0, 3, 2, 4) for part in (q, k, v))
            y, ends = learned(chunks, q, k, v, left, total, begin, held)
            y = rms_norm(chunks.merge(y.permute(1, 0, 3, 2, 4))).reshape(batch, time, width)
        if context.state is not None and chunks.filled is not None:
            context.state.write(self, **ends, key=last, filled=chunks.filled)
        return self.out(y.to(x.dtype))


def weighted(
    chunks: Chunks, step: float, gates: Float[Tensor, "batch time 3 heads"]
) -> tuple[Float[Tensor, "count batch heads 2 size"], Float[Tensor, "count batch heads 2 2"]]:
    r"""What of each position's gradient a chunk adds to the weights and to the momentum, and what it leaves of both.

    One position maps :math:`(M, S)` to :math:`((1 - \alpha) M + \eta S, \eta S)` and takes :math:`\theta` times its
    gradient from both. What it takes is multiplied by the maps of all later ones, whose products are taken in pairs.

    Shapes:
        gates: ``[batch, time, 3, heads]``; results: ``[count, batch, heads, 2, size]`` and
        ``[count, batch, heads, 2, 2]``
    """
    step_, keep, decay = gates.unbind(2)
    # Places that are not taken change nothing: eta and 1 - alpha are one, and no momentum is added. The step has the
    # two of the derivative of a square.
    lost = torch.sigmoid(-keep)
    parts = [2 * step * torch.sigmoid(step_) * lost, torch.sigmoid(keep), lost, torch.sigmoid(decay)]
    theta, added, lost, decayed = chunks.split(torch.stack(parts, 2)).permute(3, 1, 0, 4, 2).unbind()
    keeps, holds, moves = 1 - lost, 1 - decayed, added
    reach = 1
    while reach < chunks.size:
        later_keeps, later_holds = (F.pad(x[..., reach:], (0, reach), value=1.0) for x in (keeps, holds))
        later_moves = F.pad(moves[..., reach:], (0, reach))
        moves = later_moves * keeps + later_holds * moves
        keeps, holds = later_keeps * keeps, later_holds * holds
        reach *= 2
    total = torch.stack([holds[..., 0], moves[..., 0], torch.zeros_like(moves[..., 0]), keeps[..., 0]], -1)
    after = [
        F.pad(x[..., 1:], (0, 1), value=value) for x, value in ((holds, 1.0), (moves, 0.0), (keeps, 1.0))
    ]
    left = torch.stack([after[0] + after[1], after[2]], -2) * -theta[..., None, :]
    return left, total.unflatten(-1, (2, 2))


class _Step(torch.autograd.Function):
    # One chunk. By hand because all that is saved and added up are sums over positions, and autograd would go over
    # the weights, which are as large, several times more.
    @staticmethod
    def forward(ctx, k, q, v, left, total, *held):  # type: ignore[override]
        layers = len(held) // 2 if held[-1].ndim == 3 else len(held)
        states, anchors = held[:layers], held[layers:] or tuple(state[:, 0] for state in held)
        size, inputs = k.shape[1], torch.cat([k, q], 1)
        outer = products(inputs, anchors[0])
        saved = [k, inputs, left, total, *held]
        if layers == 1:
            error = outer[:, :size] + (k - v)
            read = outer[:, size:] + q
            gradients = [products(_apart(k, left).mT, error)]
        else:
            share = torch.sigmoid(outer)
            active = outer.mul_(share)
            # Numbers of the width of a head are scaled, which are fewer than hidden ones.
            answers = products(active, anchors[1].mT).mul_(share.shape[-1] ** -0.5)
            error = (answers[:, :size] + (k - v)).mul_(share.shape[-1] ** -0.5)
            read = answers[:, size:] + q
            back = products(error, anchors[1])
            inner = _slope(share[:, :size], active[:, :size]).mul_(back)
            gradients = [
                products(_apart(k, left).mT, inner),
                products(_apart(error, left).mT, active[:, :size]),
            ]
            saved += [share, active, back, inner]
        ctx.save_for_backward(error, *saved)
        ctx.layers, ctx.follows = layers, layers == len(held)
        # In place: weights are large, and what is added to would be copied.
        moved = [
            gradient.view(len(k), 2, -1).baddbmm_(total, state.flatten(2)).view_as(state)
            for gradient, state in zip(gradients, states, strict=True)
        ]
        return read, *moved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read, *grad_moved):  # type: ignore[override]
        with without_autocast(grad_read):
            return _step_back(ctx, grad_read, [grad.contiguous() for grad in grad_moved])


def _step_back(ctx: Any, grad_read: Tensor, grad_moved: list[Tensor]) -> tuple[Tensor, ...]:
    error, k, inputs, left, total, *rest = ctx.saved_tensors
    layers, size = ctx.layers, k.shape[1]
    states, rest = rest[:layers], rest[layers:]
    anchors = [state[:, 0] for state in states]
    if not ctx.follows:
        anchors, rest = rest[:layers], rest[layers:]
    flat = [grad.flatten(2) for grad in grad_moved]
    grad_total = torch.stack([g @ state.flatten(2).mT for g, state in zip(flat, states, strict=True)]).sum(0)
    grad_states = [(total.mT @ grad).view_as(state) for grad, state in zip(flat, states, strict=True)]
    # The gradient of a sum of outer products, weighted once for the weights and once for the momentum.
    sums = [grad.flatten(1, 2) for grad in grad_moved]
    if layers == 1:
        grad_keys = products(error, sums[0].mT)
        grad_error = products(_apart(k, left), sums[0])
        grad_left = _weights(grad_keys, k)
        grad_answers = torch.cat([grad_error, grad_read], 1)
        grad_inputs = products(grad_answers, anchors[0].mT)
        grad_anchors = [products(inputs.mT, grad_answers)]
    else:
        share, active, back, inner = rest
        scale = share.shape[-1] ** -0.5
        grad_keys = products(inner, sums[0].mT)
        grad_inner = products(_apart(k, left), sums[0])
        grad_errors = products(active[:, :size], sums[1].mT)
        grad_left = _weights(grad_keys, k) + _weights(grad_errors, error)
        slope = _slope(share, active)
        grad_back = grad_inner * slope[:, :size]
        grad_error = _together(grad_errors, left).baddbmm_(grad_back, anchors[1].mT).mul_(scale)
        grad_answers = torch.cat([grad_error, grad_read], 1)
        scaled = grad_answers * scale
        grad_outer = products(scaled, anchors[1])
        grad_outer[:, :size] += products(_apart(error, left), sums[1])
        grad_second = products(scaled.mT, active).baddbmm_(error.mT, grad_back)
        grad_outer.mul_(slope)
        # The slope's own derivative is (1 - share) (2 slope - active).
        bent = grad_inner.mul_(back).mul_(torch.sub(slope[:, :size], active[:, :size], alpha=0.5))
        grad_outer[:, :size].add_(bent, alpha=2).addcmul_(bent, share[:, :size], value=-2)
        grad_inputs = products(grad_outer, anchors[0].mT)
        grad_anchors = [products(inputs.mT, grad_outer), grad_second]
    grad_k = _together(grad_keys, left).add_(grad_error).add_(grad_inputs[:, :size])
    grad_q = grad_inputs[:, size:] + grad_read
    if ctx.follows:
        for grad, more in zip(grad_states, grad_anchors, strict=True):
            grad[:, 0] += more
        grad_anchors = []
    return grad_k, grad_q, -grad_error, grad_left, grad_total, *grad_states, *grad_anchors


def _answer(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What the network answers."""
    outer = x @ weights[0]
    if len(weights) == 1:
        return x + outer
    return torch.baddbmm(x, F.silu(outer), weights[1].mT, alpha=outer.shape[-1] ** -0.5)


def _apart(x: Tensor, left: Tensor) -> Tensor:
    """Rows weighted in both ways, side by side."""
    return (x[:, :, None] * left.mT[..., None]).flatten(2)


def _together(grad: Tensor, left: Tensor) -> Tensor:
    """The gradient of what :func:`_apart` weighted."""
    one, other = grad.chunk(2, -1)
    weights = left.mT[..., None]
    return torch.addcmul(one * weights[:, :, 0], other, weights[:, :, 1])


def _weights(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weights of :func:`_apart`."""
    return (grad.unflatten(-1, (2, -1)) * x[:, :, None]).sum(-1).mT


def _slope(share: Tensor, active: Tensor) -> Tensor:
    """The derivative of the SiLU, from the sigmoid and the SiLU."""
    return torch.lerp(active, share.new_ones(()), share)


def learned(
    chunks: Chunks,
    q: Float[Tensor, "count batch heads size d_head"],
    k: Float[Tensor, "count batch heads size d_head"],
    v: Float[Tensor, "count batch heads size d_head"],
    left: Float[Tensor, "count batch heads 2 size"],
    total: Float[Tensor, "count batch heads 2 2"],
    begin: Float[Tensor, "batch heads layers d_head hidden"],
    held: Mapping[str, Tensor],
) -> tuple[Float[Tensor, "count batch heads size d_head"], dict[str, Tensor]]:
    """What queries read, and the weights that are left at the end; one chunk after the other.

    Args:
        chunks: Where documents begin and chunks end.
        q: Queries.
        k: Keys.
        v: Values.
        left: From :func:`weighted`.
        total: From :func:`weighted`.
        begin: Weights at the beginning of a document; of two layers the second is transposed.
        held: ``anchor``, ``weights`` and ``momentum`` before the first chunk, shaped like ``begin``.
    """
    batch, heads = begin.shape[:2]
    # Of each layer the weights and their momentum side by side, which one small product moves on.
    fresh = torch.stack([begin, torch.zeros_like(begin)], 3).flatten(0, 1).unbind(1)
    states = torch.stack([held["weights"], held["momentum"]], 3).flatten(0, 1).unbind(1)
    anchors = held["anchor"].flatten(0, 1).unbind(1) if chunks.complete is not None else ()
    parts, read = [part.flatten(1, 2).unbind() for part in (k, q, v, left, total)], []
    for n, inputs in enumerate(zip(*parts, strict=True)):
        if chunks.begins is not None and n:
            new = chunks.begins[:, n].repeat_interleave(heads).view(-1, 1, 1, 1)
            states = [torch.where(new, one, other) for one, other in zip(fresh, states, strict=True)]
            anchors = [
                torch.where(new[:, 0], one[:, 0], other) for one, other in zip(fresh, anchors, strict=True)
            ]
        if chunks.complete is None and n == chunks.count - 1:
            # Nobody will read what the last chunk leaves.
            read.append(_answer(inputs[1], [state[:, 0] for state in states]))
            break
        y, *states = _Step.apply(*inputs, *states, *anchors)
        read.append(y)
        if chunks.complete is not None:
            done = chunks.complete[:, n].repeat_interleave(heads).view(-1, 1, 1)
            anchors = [
                torch.where(done, one[:, 0], other) for one, other in zip(states, anchors, strict=True)
            ]
    y = torch.stack(read).unflatten(1, (batch, heads))
    if chunks.complete is None:
        return y, {}
    weights, momentum = torch.stack(list(states), 1).unflatten(0, (batch, heads)).unbind(3)
    anchor = torch.stack(list(anchors), 1).unflatten(0, (batch, heads))
    return y, {"anchor": anchor, "weights": weights, "momentum": momentum}
