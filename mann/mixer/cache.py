"""Attention with a cache: the keys and values of earlier segments go on being heard."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mann.banded import attend, window_masks
from mann.context import Context
from mann.projection import StreamingQueriesKeysValues, fold


class CachedAttention(StreamingQueriesKeysValues):
    r"""Softmax attention over a segment and the last ``cache`` positions before it.

    .. math::
        y_t = W_o \sum_{s \in \text{cache}\, \cup\, \{s \le t\}}
        \mathrm{softmax}_s\big(\langle q'_t, k'_s \rangle\big)\, v_s

    with queries and keys as in :class:`~mann.CausalAttention` (shifted, normalised, rotated). What is held of earlier
    segments are keys and values, in the :class:`~mann.State`: rotations are relative, so keys are held without them
    and rotated anew by their distance to the segment, and the first key of a segment is mixed with the last one before
    it. With ``cache`` as long as the text, segments equal one long row under :class:`~mann.CausalAttention`. Without a
    state every row begins anew.

    Gradients reach back into earlier segments until :meth:`mann.State.detach`, which the paper calls at each one.

    Reference:
        Dai et al., "Transformer-XL", 2019. arXiv:1901.02860. Its positions are a bias on the scores; here rotations
        are as relative.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads; must divide ``d_model`` into an even head width.
        cache: Positions held from one segment to the next.
        window: Positions that a query sees, its own the last of them; ``None``: whatever is there, which makes the
            last query of a segment hear more than the first.
        block: Queries per block.
        base: Base of the rotary frequencies.

    Shapes:
        input and output: ``[batch, time, width]``.

    Raises:
        ValueError: If ``n_heads`` does not divide ``d_model`` into an even head width, or ``cache`` or ``window`` is
            smaller than 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        cache: int = 512,
        window: int | None = None,
        block: int = 64,
        base: float = 10_000.0,
    ) -> None:
        super().__init__(d_model, n_heads, base)
        if cache < 1 or (window is not None and window < 1):
            raise ValueError(f"cache={cache} and window={window} must both be at least 1 (or window None)")
        self.cache = cache
        self.window = window
        self.block = block

    def forward(
        self, x: Float[Tensor, "batch time width"], context: Context
    ) -> Float[Tensor, "batch time width"]:
        time, held = x.shape[1], 0
        if context.state is None:
            q, k, v = self.heads(x, context)
            labels = context.documents
        else:
            stream = self.stream(x, context, self.cache)
            self.leave(stream, context)
            q, k = self.rotated(stream, context)
            v, labels, held = stream.v, stream.labels, stream.held
        q, k, v = (fold(part) for part in (q, k, v))
        window = held + time if self.window is None else self.window
        masks = window_masks(context, self.block, window, q.dtype, held, labels)
        return self.merge(attend(q, k, v, masks, self.block, window)[0])
