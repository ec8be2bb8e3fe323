"""Differentiable neural computer: rows are taken when free, and read in the order they were written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.networks.base import MOST_STRENGTH, MemoryNetwork, at_least_one, content_scores
from mann.readout import Readout, SoftmaxReadout

# Usage has to stay above nothing, for products of it are taken in logarithms.
LEAST_USAGE = 1e-6


class DNC(MemoryNetwork):
    r"""Differentiable neural computer: a controller with a memory that knows what is free and what came after what.

    Writing chooses between a free row and one of like content, or does not write at all:

    .. math::
        u_t = (u + w^w - u w^w)_{t-1} \prod_r (1 - f_r w^r_{t-1}), \quad
        a_{\phi_j} = (1 - u_{\phi_j}) \prod_{i < j} u_{\phi_i}, \quad
        w^w = g^w (g^a a + (1 - g^a) \, c(M_{t-1}, k^w, \beta^w))

    with rows :math:`\phi` sorted by usage :math:`u`, gates :math:`g`, free gates :math:`f`, and :math:`c` a softmax of
    cosines times a strength. Then :math:`M_t = M_{t-1} (1 - w^w e^\top) + w^w v^\top`. The links say which row was
    written after which, and every read head mixes the row before, one of like content, and the row after:

    .. math::
        L_t[i, j] = (1 - w^w_i - w^w_j) L_{t-1}[i, j] + w^w_i p_{t-1, j}, \quad
        p_t = (1 - \textstyle\sum_i w^w_i) p_{t-1} + w^w, \quad
        w^r = \pi_1 L_t^\top w^r_{t-1} + \pi_2 \, c(M_t, k^r, \beta^r) + \pi_3 L_t w^r_{t-1}

    Trained networks write a little at every step, so a memory should have more rows than a text has steps, even if far
    fewer are worth keeping: else what has not been read yet is written over. Parameters do not depend on ``n_rows``.

    Reference:
        Graves et al., "Hybrid computing using a neural network with dynamic external memory", 2016. Nature 538, 471.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of embeddings, and of what the readout sees.
        d_hidden: Width of the controller.
        n_rows: Rows of the memory; a step costs their square.
        d_row: Numbers of a row.
        n_read: Read heads.
        readout: ``readout(d_model, vocab_size)``.
        controller: ``"lstm"``, or ``"feedforward"``, which remembers nothing but what the memory holds.
        cell_noise: Of the LSTM in training; see :class:`~mann.networks.MemoryNetwork`.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.

    Raises:
        ValueError: If a size is smaller than 1.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        d_hidden: int = 100,
        n_rows: int = 128,
        d_row: int = 20,
        n_read: int = 1,
        readout: Callable[[int, int], Readout] = SoftmaxReadout,
        controller: str = "lstm",
        cell_noise: float = 0.0,
    ) -> None:
        at_least_one(n_rows=n_rows, d_row=d_row, n_read=n_read)
        super().__init__(vocab_size, d_model, d_hidden, n_read * d_row, readout, controller, cell_noise)
        self.n_rows, self.d_row, self.n_read = n_rows, d_row, n_read
        # Keys and what is written; strengths; what is erased, free gates, allocation and write gate; read modes.
        self.parts = [(n_read + 2) * d_row, n_read + 1, d_row + n_read + 2, 3 * n_read]
        self.interface = nn.Linear(d_hidden, sum(self.parts))

    def start(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        zero = like.new_zeros(())
        return {
            "memory": zero.expand(batch, self.n_rows, self.d_row),
            "usage": zero.expand(batch, self.n_rows),
            "links": zero.expand(batch, self.n_rows, self.n_rows),
            "precedence": zero.expand(batch, self.n_rows),
            "written": zero.expand(batch, self.n_rows),
            "read": zero.expand(batch, self.n_read, self.n_rows),
        }

    def access(
        self, hidden: Float[Tensor, "batch hidden"], memory: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch read"], dict[str, Tensor]]:
        heads, width = self.n_read, self.d_row
        vectors, strength, gates, modes = self.interface(hidden).split(self.parts, 1)
        keys, value = vectors.view(-1, heads + 2, width).split([heads + 1, 1], 1)
        strength = (1 + F.softplus(strength)).clamp(max=MOST_STRENGTH)
        erased, free, allocate, write = torch.sigmoid(gates).split([width, heads, 1, 1], 1)
        modes = torch.softmax(modes.view(-1, heads, 3), -1)

        usage, written = memory["usage"], memory["written"]
        usage = usage + written - usage * written
        for head in range(heads):
            usage = torch.addcmul(usage, usage * free[:, head, None], memory["read"][:, head], value=-1)
        content = torch.softmax(content_scores(keys[:, :1], memory["memory"], strength[:, :1]), -1)[:, 0]
        written = write * torch.lerp(content, allocation(usage), allocate)

        rows = memory["memory"]
        rows = torch.addcmul(rows, rows, torch.bmm(written[..., None], erased[:, None]), value=-1)
        rows = torch.baddbmm(rows, written[..., None], value)
        links, before, after = _Links.apply(memory["links"], memory["precedence"], written, memory["read"])
        precedence = torch.addcmul(written, 1 - written.sum(1, keepdim=True), memory["precedence"])
        content = torch.softmax(content_scores(keys[:, 1:], rows, strength[:, 1:]), -1)
        reading = modes[..., :1] * before
        reading = torch.addcmul(reading, modes[..., 1:2], content)
        reading = torch.addcmul(reading, modes[..., 2:], after)
        return torch.bmm(reading, rows).flatten(1), {
            "memory": rows,
            "usage": usage,
            "links": links,
            "precedence": precedence,
            "written": written,
            "read": reading,
        }


def allocation(usage: Float[Tensor, "batch rows"]) -> Float[Tensor, "batch rows"]:
    """How much each row is the next to be taken: the least used first, of several the first.

    Args:
        usage: Of each row, 0 for free to 1.

    Shapes:
        usage and output: ``[batch, rows]``.
    """
    ordered, order = torch.sort(LEAST_USAGE + (1 - LEAST_USAGE) * usage, stable=True)
    logs = torch.log(ordered)
    earlier = torch.exp(torch.cumsum(logs, 1) - logs)
    return torch.zeros_like(usage).scatter(1, order, (1 - ordered) * earlier)


class _Links(torch.autograd.Function):
    # The links after a write, and what read heads find before and after where they were. By hand because the links
    # are the square of everything else, and autograd would go over them twice as often.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, links: Tensor, precedence: Tensor, written: Tensor, reading: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = (1 - written)[:, :, None] - written[:, None]
        after_writing = kept.mul_(links).addcmul_(written[:, :, None], precedence[:, None])
        after_writing.diagonal(dim1=1, dim2=2).zero_()
        ctx.save_for_backward(links, precedence, written, reading, after_writing)
        before, after = torch.bmm(reading, after_writing), torch.bmm(reading, after_writing.mT)
        return after_writing, before, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_links: Tensor, grad_before: Tensor, grad_after: Tensor):  # type: ignore[override]
        links, precedence, written, reading, after_writing = ctx.saved_tensors
        left = torch.cat([reading, grad_after], 1).mT
        grad = torch.baddbmm(grad_links, left, torch.cat([grad_before, reading], 1))
        grad.diagonal(dim1=1, dim2=2).zero_()
        grad_reading = torch.baddbmm(torch.bmm(grad_before, after_writing.mT), grad_after, after_writing)
        grad_precedence = torch.bmm(written[:, None], grad)[:, 0]
        grad_written = torch.bmm(grad, precedence[:, :, None])[..., 0]
        product = grad * links
        grad_written = grad_written - product.sum(2) - product.sum(1)
        kept = (1 - written)[:, :, None] - written[:, None]
        return kept.mul_(grad), grad_precedence, grad_written, grad_reading
