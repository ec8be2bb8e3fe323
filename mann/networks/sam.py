"""Sparse access memory: a step reads and writes a few rows, and so does its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mann.networks.base import EMPTY, MOST_STRENGTH, MemoryNetwork, at_least_one, inverse_length
from mann.readout import Readout, SoftmaxReadout
from mann.topk import top_ids
from retrieval import Index

# Weight from which a row counts as used.
USED = 0.005


class SparseAccessMemory(MemoryNetwork):
    r"""Sparse access memory: a controller with a large memory, of which each head reads ``k`` rows, those most like
    its key.

    .. math::
        r = \sum_{i \in \mathrm{top}_k} \mathrm{softmax}_i(\beta \cos(q, M_i)) M_i, \qquad
        w = \alpha (\gamma w^r_{t-1} + (1 - \gamma) \mathbb 1^U), \qquad
        M_t = (1 - \mathbb 1^U) \circ M_{t-1} + w a^\top

    A head writes to the rows that it has read last, or to the row :math:`U` that nobody has used for longest (weight
    above 0.005), which is emptied first; of several heads each takes another. It is written, then read. With ``k =
    n_rows`` the read is the dense one by content.

    The memory is changed in place, and going back undoes nothing: what is read is kept, and the gradient of the memory
    is one table too, of which a step touches the rows that it touched going forward. First derivatives only.

    Reference:
        Rae et al., "Scaling memory-augmented neural networks with sparse reads and writes", 2016. arXiv:1610.09027.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of embeddings, and of what the readout sees.
        d_hidden: Width of the controller.
        n_rows: Rows of the memory.
        d_row: Numbers of a row.
        n_heads: Heads; each reads and writes.
        k: Rows that a head reads.
        factory: ``None``: all rows are compared. A FAISS factory string, such as ``"IVF64,Flat"``, finds them
            in a :class:`retrieval.Index` for each row of the batch; rows written since it was made are compared.
        refresh: Steps after which the index is made anew.
        readout: ``readout(d_model, vocab_size)``.
        controller: ``"lstm"``, or ``"feedforward"``, which remembers nothing but what the memory holds.
        cell_noise: Of the LSTM in training; see :class:`~mann.networks.MemoryNetwork`.

    Shapes:
        tokens: ``[batch, time]``; output: log-probabilities ``[batch, time, vocab]``.

    Raises:
        ValueError: If a size is smaller than 1, or there are fewer rows than are read, or than heads.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        d_hidden: int = 100,
        n_rows: int = 1024,
        d_row: int = 20,
        n_heads: int = 1,
        k: int = 4,
        factory: str | None = None,
        refresh: int = 16,
        readout: Callable[[int, int], Readout] = SoftmaxReadout,
        controller: str = "lstm",
        cell_noise: float = 0.0,
    ) -> None:
        at_least_one(d_row=d_row, n_heads=n_heads, k=k, refresh=refresh)
        if n_rows < max(k, n_heads):
            raise ValueError(
                f"{n_rows} rows for {n_heads} heads that read {k} each: give n_rows >= {max(k, n_heads)}"
            )
        super().__init__(vocab_size, d_model, d_hidden, n_heads * d_row, readout, controller, cell_noise)
        self.n_rows, self.d_row, self.n_heads, self.k = n_rows, d_row, n_heads, k
        self.factory, self.refresh = factory, refresh
        # Keys and what is written; strengths; write gates and interpolation.
        self.parts = [2 * n_heads * d_row, n_heads, 2 * n_heads]
        self.heads = nn.Linear(d_hidden, sum(self.parts))

    def start(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        zero = like.new_zeros(())
        return {
            "memory": zero.expand(batch, self.n_rows, self.d_row),
            # When each row was used last, by the clock; rows that never were come in order.
            "used": torch.arange(-self.n_rows, 0, device=like.device, dtype=torch.float32).expand(batch, -1),
            "clock": like.new_zeros((), dtype=torch.float32).expand(batch),
            "rows_read": torch.arange(self.k, device=like.device).expand(batch, self.n_heads, self.k),
            "weights": zero.expand(batch, self.n_heads, self.k),
        }

    def open(self, memory: dict[str, Tensor]) -> _Rows:
        return _Rows(memory, self.factory, self.refresh)

    def close(self, memory: _Rows, read: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        read, memory.held["memory"] = _Close.apply(memory.token, read, memory)
        return memory.held, read

    def renew(self, memory: _Rows, fresh: Tensor, start: Mapping[str, Tensor]) -> _Rows:
        memory.token = _Renew.apply(memory.token, memory, fresh)
        for name in ("used", "clock", "rows_read", "weights"):
            value = memory.held[name]
            memory.held[name] = torch.where(fresh.view(-1, *[1] * (value.ndim - 1)), start[name], value)
        return memory

    def access(self, hidden: Float[Tensor, "batch hidden"], memory: _Rows) -> tuple[Tensor, _Rows]:
        vectors, strength, gates = self.heads(hidden).split(self.parts, 1)
        keys, added = torch.tanh(vectors).view(-1, 2 * self.n_heads, self.d_row).chunk(2, 1)
        strength = (1 + F.softplus(strength)).clamp(max=MOST_STRENGTH)
        write, again = torch.sigmoid(gates).chunk(2, 1)
        held = memory.held
        taken = top_ids(-held["used"], self.n_heads)
        writing = write[..., None] * torch.cat([again[..., None] * held["weights"], 1 - again[..., None]], -1)
        rows_written = torch.cat([held["rows_read"], taken[..., None]], -1)
        memory.write(rows_written, taken, writing, added)

        rows_read = memory.nearest(keys.detach(), self.k)
        rows = memory.read(rows_read)
        match = (keys[:, :, None] * rows).sum(-1) * inverse_length(rows)
        weights = torch.softmax(match * (strength * inverse_length(keys))[..., None], -1)
        memory.note(rows_written, writing, rows_read, weights)
        return (weights[..., None] * rows).sum(2).flatten(1), memory


class _Rows:
    """The memory of a batch while a segment runs: rows that are changed in place, and their gradient.

    All that is done to it is strung on one token that autograd follows, so that it is gone back over in order.
    """

    def __init__(self, held: dict[str, Tensor], factory: str | None, refresh: int) -> None:
        self.held = dict(held)
        memory = held["memory"]
        self.batch, self.count, self.width = memory.shape
        self.offsets = torch.arange(self.batch, device=memory.device)[:, None, None] * self.count
        self.table = memory.detach().reshape(-1, self.width).clone()
        self.lengths = inverse_length(self.table)
        self.gradient: Tensor | None = None
        self.token: Tensor = _Open.apply(memory, self)
        self.factory, self.refresh = factory, refresh
        self.indexes: list[Index] = []
        self.changed: list[Tensor] = []

    def flat(self, rows: Int[Tensor, "batch heads n"]) -> Int[Tensor, " all"]:
        return (rows + self.offsets).flatten()

    def write(self, rows: Tensor, taken: Tensor, weights: Tensor, added: Tensor) -> None:
        flat = self.flat(rows)
        self.token = _Write.apply(self.token, weights, added, self, flat, self.flat(taken[..., None]))
        self.lengths.index_copy_(0, flat, inverse_length(self.table.index_select(0, flat)))
        if self.indexes:
            self.changed.append(rows.flatten(1))

    def read(self, rows: Tensor) -> Float[Tensor, "batch heads k width"]:
        found, self.token = _Read.apply(self.token, self, self.flat(rows))
        return found.view(*rows.shape, self.width)

    def note(self, written: Tensor, writing: Tensor, read: Tensor, weights: Tensor) -> None:
        """What was used in this step, and what the next one may write to again."""
        clock = self.held["clock"] + 1
        rows = torch.cat([written, read], -1).flatten(1)
        enough = torch.cat([writing, weights], -1).detach().flatten(1) > USED
        used = self.held["used"]
        # The clock only goes forward, so of a row named twice the larger time is the right one.
        times = torch.where(enough, clock[:, None], used.gather(1, rows))
        self.held |= {
            "used": used.scatter_reduce(1, rows, times, "amax"),
            "clock": clock,
            "rows_read": read,
            "weights": weights,
        }

    @torch.no_grad()
    def nearest(self, keys: Float[Tensor, "batch heads width"], k: int) -> Int[Tensor, "batch heads k"]:
        if self.factory is None:
            scores = torch.bmm(keys, self.table.view(self.batch, self.count, -1).mT)
            return top_ids(scores * self.lengths.view(self.batch, 1, -1), k)
        if not self.indexes or len(self.changed) >= self.refresh:
            self._index()
        changed = (
            torch.cat(self.changed, 1) if self.changed else keys.new_zeros((self.batch, 0), dtype=torch.long)
        )
        changed = changed.sort(1).values
        n = changed.shape[1]
        again = F.pad(changed[:, 1:] == changed[:, :-1], (1, 0)) if n else changed.bool()
        most = min(self.count, k + n)
        found = [index.search(key, most) for index, key in zip(self.indexes, keys, strict=True)]
        ids = torch.stack([one.ids for one in found])
        # What the index says of a row that was written since is out of date.
        gone = ~torch.stack([one.mask for one in found]) | (ids[..., None] == changed[:, None, None]).any(-1)
        ids = torch.cat([ids, changed[:, None].expand(-1, keys.shape[1], -1)], -1)
        gone = torch.cat([gone, again[:, None].expand(-1, keys.shape[1], -1)], -1)
        flat = self.flat(ids)
        rows = self.table.index_select(0, flat).view(*ids.shape, -1)
        scores = (rows * keys[:, :, None]).sum(-1) * self.lengths.index_select(0, flat).view(ids.shape)
        return ids.gather(-1, top_ids(scores.masked_fill(gone, -torch.inf), k))

    def _index(self) -> None:
        rows = (self.table * self.lengths[:, None]).view(self.batch, self.count, -1)
        self.indexes = [Index(str(self.factory)).add(part) for part in rows]
        self.changed = []


class _Open(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: Tensor, rows: _Rows) -> Tensor:  # type: ignore[override]
        ctx.rows, ctx.shape = rows, memory.shape
        return memory.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor):  # type: ignore[override]
        return ctx.rows.gradient.view(ctx.shape), None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, token: Tensor, weights: Tensor, added: Tensor, rows: _Rows, named: Tensor, emptied: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weights, added, named, emptied)
        ctx.rows = rows
        rows.table.index_fill_(0, emptied, 0.0)
        rows.table.index_add_(0, named, (weights[..., None] * added[:, :, None]).flatten(0, 2))
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor):  # type: ignore[override]
        weights, added, named, emptied = ctx.saved_tensors
        gradient = ctx.rows.gradient
        grad = gradient.index_select(0, named).view(*weights.shape, -1)
        gradient.index_fill_(0, emptied, 0.0)
        grad_weights = (grad * added[:, :, None]).sum(-1)
        return grad_token, grad_weights, (grad * weights[..., None]).sum(2), None, None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, rows: _Rows, named: Tensor):  # type: ignore[override]
        ctx.save_for_backward(named)
        ctx.rows = rows
        return rows.table.index_select(0, named), token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_token: Tensor):  # type: ignore[override]
        (named,) = ctx.saved_tensors
        ctx.rows.gradient.index_add_(0, named, grad)
        return grad_token, None, None


class _Renew(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, rows: _Rows, fresh: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(fresh)
        ctx.rows = rows
        rows.table.view(rows.batch, -1).masked_fill_(fresh[:, None], 0.0)
        rows.lengths.view(rows.batch, -1).masked_fill_(fresh[:, None], EMPTY**-0.5)
        rows.indexes = []
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor):  # type: ignore[override]
        (fresh,) = ctx.saved_tensors
        ctx.rows.gradient.view(ctx.rows.batch, -1).masked_fill_(fresh[:, None], 0.0)
        return grad_token, None, None


class _Close(torch.autograd.Function):
    # All that was read passes through here, so that a backward pass always begins with an own gradient.
    @staticmethod
    def forward(ctx: Any, token: Tensor, read: Tensor, rows: _Rows):  # type: ignore[override]
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return read.view_as(read), rows.table.view(rows.batch, rows.count, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_memory: Tensor | None):  # type: ignore[override]
        table = ctx.rows.table
        ctx.rows.gradient = (
            torch.zeros_like(table) if grad_memory is None else grad_memory.reshape(table.shape).clone()
        )
        return table.new_zeros(()), grad, None
