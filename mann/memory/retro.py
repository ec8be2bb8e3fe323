"""Chunked cross-attention: what resembles the last chunk of the text is read while the next one is written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mann.chunks import Chunks, document_chunks
from mann.context import Context
from mann.linear import Linear
from mann.memory.base import Memory
from mann.norm import rms_norm
from mann.sourced import Sourced
from mann.state import Streaming
from retrieval import Source


class ChunkedCrossAttention(Sourced, Streaming, Memory):
    r"""Cross-attention to the neighbours of the last complete chunk.

    Documents are cut into chunks of :math:`m` tokens. The :math:`k` neighbours found at the last token of chunk
    :math:`u` are windows of the stored text around the place that matched. They are encoded in both directions, told
    the state at that token, and read from there on until the chunk after it is complete:

    .. math::
        E_u = \mathrm{encoder}\big(\text{windows}_u, \; x_{m(u+1)-1}\big), \qquad
        y_t = W_o \, \mathrm{attention}\big(W_q \hat x_t + p_t, \; W_k E_u, \; W_v E_u\big), \qquad
        u = \lfloor (t+1)/m \rfloor - 1

    with :math:`t` counted from the beginning of the document and :math:`p` a vector for each place in a chunk. The
    first :math:`m-1` positions of a document get nothing. A learned sink takes the attention that no neighbour
    deserves, all of it where there is none.

    That neighbours come from other documents than the text itself is for who searches to say (``exclude`` of
    :meth:`retrieval.Source.search`), here by ``exclude`` beside the tokens; those that are missing for it are masked,
    never read. A search made here is one for each chunk, at its last token, and :attr:`every` tells whoever searches
    beforehand that other positions are not read. A :class:`~mann.State` carries the encoded neighbours of a chunk to
    the next segment, and the tokens that a search looks back to.

    Reference:
        Borgeaud et al., "Improving language models by retrieving from trillions of tokens" (RETRO), 2022.
        arXiv:2112.04426.

    Args:
        d_model: Width of the residual stream.
        source: Where to look.
        k: Neighbours of a chunk.
        chunk: Tokens of a chunk, :math:`m`.
        before: Tokens of a window before the place that matched; by default ``chunk - 1``.
        after: Tokens after it; by default ``chunk``.
        n_heads: Heads of both attentions.
        d_read: Width of the encoder and of keys and values.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If a chunk has no tokens, or ``n_heads`` does not divide ``d_read``.
    """

    def __init__(
        self,
        d_model: int,
        source: Source,
        k: int = 2,
        chunk: int = 64,
        before: int | None = None,
        after: int | None = None,
        n_heads: int = 2,
        d_read: int = 64,
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: give at least 1 token, such as 64")
        if n_heads < 1 or d_read % n_heads:
            raise ValueError(f"d_read={d_read} cannot be cut into {n_heads} heads: choose a divisor")
        self.source, self.k, self.chunk, self.every = source, k, chunk, chunk
        self.before = chunk - 1 if before is None else before
        self.after = chunk if after is None else after
        self.n_heads = n_heads
        self.embedding = nn.Embedding(source.passages.vocab_size, d_read)
        self.position = nn.Parameter(0.02 * torch.randn(self.before + 1 + self.after, d_read))
        self.condition = Linear(d_model, d_read)
        self.mix = Linear(d_read, 3 * d_read)
        self.mixed = Linear(d_read, d_read)
        self.up, self.down = Linear(d_read, 2 * d_read), Linear(2 * d_read, d_read)
        self.query, self.keys = Linear(d_model, d_read), Linear(d_read, 2 * d_read)
        self.place = nn.Parameter(0.02 * torch.randn(chunk, d_read))
        self.sink = nn.Parameter(torch.zeros(n_heads))
        for layer, matrices in ((self.mix, 3), (self.keys, 2)):
            # Each is made orthogonal by itself.
            layer.weight.matrices = matrices  # type: ignore[attr-defined]
        self.out = Linear(d_read, d_model)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        batch, width = len(x), self.position.shape[1]
        k = self.k if context.neighbors is None else context.neighbors.k
        known = {
            "encoded": x.new_zeros(()).expand(batch, k, *self.position.shape),
            "present": torch.zeros(batch, k, dtype=torch.bool, device=x.device),
            # The last token of a chunk reads already: as if every document began one token earlier.
            "filled": context.tokens.new_full((batch,), 1 % self.chunk),
        }
        held = known if context.state is None else context.state.read(self, known)
        chunks = document_chunks(context, self.chunk, held["filled"], lead=1 % self.chunk)
        x = rms_norm(x)
        windows, present, found, last = self._windows(chunks, context, x)
        encoded = self.encode(windows, last)
        # The first of a row may have been found in an earlier segment.
        here = found[:, :1, None]
        first = torch.where(here[..., None, None], encoded[:, :1], held["encoded"][:, None].to(encoded.dtype))
        encoded = torch.cat([first, encoded[:, 1:]], 1)
        present = torch.cat([torch.where(here, present[:, :1], held["present"][:, None]), present[:, 1:]], 1)
        keys, values = self.keys(rms_norm(encoded)).flatten(2, 3).chunk(2, -1)
        query = chunks.split(self.query(x))
        query = query + self.place.to(query.dtype)
        hidden = ~present.repeat_interleave(len(self.position), 2)
        read = self._attend(query, keys, values, hidden[:, :, None, None], self.sink)
        if context.state is not None and chunks.places is not None and chunks.filled is not None:
            row, open_ = torch.arange(batch, device=x.device), chunks.places[:, -1] // self.chunk
            left = encoded[row, open_], present[row, open_]
            context.state.write(self, encoded=left[0], present=left[1], filled=chunks.filled)
        return self.out(chunks.merge(read.reshape(batch, chunks.count, self.chunk, width)))

    def _windows(
        self, chunks: Chunks, context: Context, x: Tensor
    ) -> tuple[Int[Tensor, "batch count k window"], Bool[Tensor, "batch count k"], Tensor, Tensor]:
        """Of each chunk, as far as it has any: its neighbours, which exist, whether it was looked for, the state."""
        here = torch.arange(chunks.time, device=x.device).expand_as(context.tokens)
        # One more than the position, so that a place that is not taken has 0.
        first = chunks.split(here + 1)[:, :, 0] - 1
        found = first >= 0
        at = torch.where(found, first, 0)
        neighbors = context.retrieve(self.source, self.k, chunks.opens if self.chunk > 1 else None)
        index = at[..., None].expand(-1, -1, neighbors.k)
        windows = self.source.passages.window(neighbors.ids.gather(1, index), self.before, self.after)
        present = neighbors.mask.gather(1, index) & found[..., None]
        return windows, present, found, x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))

    def encode(
        self,
        windows: Int[Tensor, "*batch k window"],
        state: Float[Tensor, "*batch width"],
    ) -> Float[Tensor, "*batch k window d_read"]:
        """Stored tokens as vectors that know all of their window, and where the reader stands.

        Args:
            windows: Tokens.
            state: Normalised states of who asks.

        Shapes:
            windows: ``[*batch, k, window]``; state: ``[*batch, d_model]``; output:
            ``[*batch, k, window, d_read]``
        """
        e = self.embedding(windows) + self.position
        e = e + self.condition(state)[..., None, None, :]
        query, key, value = self.mix(rms_norm(e)).chunk(3, -1)
        e = e + self.mixed(self._attend(query, key, value, None, None))
        return e + self.down(F.relu(self.up(rms_norm(e))).square())

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, sink: Tensor | None
    ) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3) for part in (query, key, value)
        )
        scores = (query @ key.mT) * query.shape[-1] ** -0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        if sink is not None:
            away = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, away], -1)
        share = scores.softmax(-1)[..., : key.shape[-2]].to(value.dtype)
        return (share @ value).transpose(-2, -3).flatten(-2)
