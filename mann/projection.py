"""What every softmax mixer does before and after it attends, so that none is better for its preparation alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mann.context import Context
from mann.linear import Linear
from mann.rotary import queries_keys, rotate
from mann.state import Streaming

__all__ = ["QueriesKeysValues", "Stream", "StreamingQueriesKeysValues", "fold", "head_width"]

Heads = Float[Tensor, "batch time heads d_head"]
Positions = Float[Tensor, "batch positions heads d_head"]
Folded = Float[Tensor, "sequences time d_head"]


def head_width(d_model: int, n_heads: int, even: bool = True) -> int:
    """Width of a head.

    Args:
        d_model: Width of all heads together.
        n_heads: Number of heads.
        even: Whether it has to be even, as rotary positions want it.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into such heads.
    """
    least = 2 if even else 1
    if n_heads < 1 or d_model % n_heads or (d_model // n_heads) % least:
        counts = [h for h in range(1, d_model + 1) if d_model % (least * h) == 0]
        text = f"d_model={d_model} cannot be cut into {n_heads} heads"
        if not even:
            raise ValueError(f"{text}: choose among {counts}")
        remedy = f"choose n_heads among {counts}" if counts else "choose an even d_model, such as 32 or 64"
        raise ValueError(f"{text} of even width: {remedy}")
    return d_model // n_heads


def fold(x: Heads) -> Folded:
    """Batch and heads in one dimension.

    Shapes:
        x: ``[batch, time, heads, width]``; result: ``[batch * heads, time, width]``
    """
    return x.transpose(1, 2).flatten(0, 1)


class QueriesKeysValues(nn.Module):
    r"""Projections of a mixer: shifted keys, QK-norm, rotary positions, and an output that starts at zero.

    .. math::
        \tilde k_t = (1 - a)\, k_t + a\, k_{t-1}, \qquad
        q'_t = R_t\, \gamma\, \mathrm{rms}(q_t), \qquad k'_t = R_t\, \mathrm{rms}(\tilde k_t)

    A base for mixers; how the positions then exchange is theirs. Scores are :math:`\langle q', k' \rangle`, unscaled.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        base: Base of the rotary frequencies.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width.
    """

    def __init__(self, d_model: int, n_heads: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.d_head = head_width(d_model, n_heads)
        self.n_heads = n_heads
        self.base = base
        self.qkv = Linear(d_model, 3 * d_model)
        # Each is made orthogonal by itself.
        self.qkv.weight.matrices = 3  # type: ignore[attr-defined]
        self.out = Linear(d_model, d_model)
        # Every other head begins mostly as a previous-token head, the rest mostly without a shift: both kinds are
        # wanted. Better than starting all of them halfway at 1e12 FLOPs, no worse at 3e12 and 1e13 (single runs).
        self.shift = nn.Parameter(torch.tensor([1.5, -1.5]).repeat(n_heads)[:n_heads, None])
        self.scale = nn.Parameter(torch.full((n_heads, 1), 4 * self.d_head**-0.5))
        nn.init.zeros_(self.out.weight)

    def project(self, x: Float[Tensor, "batch time width"]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values as the matrix gives them, ``[batch, time, heads, d_head]``."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.n_heads, self.d_head).unbind(2)
        return q, k, v

    def tables(self, context: Context, dtype: torch.dtype, earlier: int = 0) -> tuple[Tensor, Tensor]:
        """Rotations of all positions, beginning ``earlier`` before this segment, for ``[batch, time, heads, ...]``."""
        cosine, sine = context.rotations(self.d_head, self.base, dtype, earlier)
        return cosine[:, None], sine[:, None]

    def heads(
        self, x: Float[Tensor, "batch time width"], context: Context, rotated: bool = True
    ) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values ready for attention, ``[batch, time, heads, d_head]``."""
        q, k, v = self.project(x)
        tables = None
        if rotated:
            cosine, sine = self.tables(context, q.dtype)
            tables = cosine[:, None], sine[:, None]
        inside = None if context.documents is None else context.same_document(1)
        q, k = queries_keys(q, k, self.share(q), self.scale, tables, inside)
        return q, k, v

    def share(self, q: Tensor) -> Float[Tensor, "heads 1"]:
        """How much each head's keys take over from the position before."""
        return torch.sigmoid(self.shift).to(q.dtype)

    def merge(self, y: Folded) -> Float[Tensor, "batch time width"]:
        """The update of the residual stream from what the heads have read.

        Shapes:
            y: ``[batch * heads, time, d_head]``; result: ``[batch, time, width]``
        """
        return self.out(y.unflatten(0, (-1, self.n_heads)).transpose(1, 2).flatten(2))


class Stream(NamedTuple):
    """A segment with what was carried into it: neither queries nor keys are rotated.

    Shapes:
        q: ``[batch, time, heads, d_head]``; k, v: ``[batch, held + time, heads, d_head]``; labels:
        ``[batch, held + time]``, the document of each position as :class:`~mann.Context` numbers them, -1 where
        nothing is held; ``None`` where nothing is carried and every row is one document; last: ``[batch, 1, heads,
        d_head]``, the last key as the matrix gave it, ``None`` without a state.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    last: Tensor | None
    labels: Int[Tensor, "batch positions"] | None

    @property
    def held(self) -> int:
        """Positions in front of the segment."""
        return self.k.shape[1] - self.q.shape[1]


class StreamingQueriesKeysValues(Streaming, QueriesKeysValues):
    """The same, with the last keys and values of one segment in front of those of the next.

    Keys are held without rotation, so that their distance to a later query is right in any segment; and the last
    unshifted key is held too, which the first key of the next segment is mixed with.
    """

    def stream(self, x: Float[Tensor, "batch time width"], context: Context, held: int) -> Stream:
        """Queries, keys and values of a segment, and of the ``held`` positions before it if there is a state.

        Then call :meth:`leave`.
        """
        if context.state is None:
            q, k, v = self.heads(x, context, rotated=False)
            return Stream(q, k, v, None, context.documents)
        q, k, v = self.project(x)
        last, none = k[:, -1:], k.new_zeros(1, 1, 1, 1)
        start = {
            "keys": none.expand(len(x), held, *k.shape[2:]),
            "values": none.expand(len(x), held, *k.shape[2:]),
            "inside": torch.zeros(len(x), held, dtype=torch.bool, device=x.device),
            "last": none.expand_as(last),
            "follows": torch.zeros(len(x), 1, dtype=torch.bool, device=x.device),
        }
        # A state that was left under autocast may go on without.
        left = {name: value.to(start[name].dtype) for name, value in context.state.read(self, start).items()}
        q, k = self._continued(q, k, context, left["last"], left["follows"])
        k, v = torch.cat([left["keys"], k], 1), torch.cat([left["values"], v], 1)
        documents = torch.zeros_like(context.tokens) if context.documents is None else context.documents
        labels = torch.cat([left["inside"].to(documents.dtype) - 1, documents], 1)
        return Stream(q, k, v, last, labels)

    def leave(self, stream: Stream, context: Context) -> None:
        """Leaves as many of the last positions in the state as were in front of the first; nothing without a state."""
        if context.state is None or stream.last is None or stream.labels is None:
            return
        begin, inside = stream.q.shape[1], stream.labels == stream.labels[:, -1:]
        context.state.write(
            self,
            keys=stream.k[:, begin:],
            values=stream.v[:, begin:],
            inside=inside[:, begin:],
            last=stream.last,
            follows=torch.ones_like(inside[:, :1]),
        )

    def _continued(
        self, q: Tensor, k: Tensor, context: Context, previous: Tensor, follows: Bool[Tensor, "batch 1"]
    ) -> tuple[Tensor, Tensor]:
        """Shifts the first key towards the last one of the segment before."""
        inside = torch.cat([torch.zeros_like(follows), follows, context.same_document(1)[:, 1:]], 1)
        q = torch.cat([torch.zeros_like(q[:, :1]), q], 1)
        q, k = queries_keys(q, torch.cat([previous, k], 1), self.share(q), self.scale, None, inside)
        return q[:, 1:], k[:, 1:]

    def rotated(self, stream: Stream, context: Context) -> tuple[Heads, Positions]:
        """Queries and keys of a stream, rotated by their distance to the first position held."""
        cosine, sine = self.tables(context, stream.q.dtype, stream.held)
        return rotate(stream.q, cosine[stream.held :], sine[stream.held :]), rotate(stream.k, cosine, sine)
