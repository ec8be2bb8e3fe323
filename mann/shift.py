"""What stood at the position before, across the segments of a text but not across its documents."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from mann.context import Context


def previous(
    x: Float[Tensor, "batch time *width"], before: Float[Tensor, "batch *width"], context: Context
) -> Float[Tensor, "batch time *width"]:
    """Each position's predecessor; at the first of a document that position itself.

    Args:
        x: What is shifted.
        before: What stood before the first position of each row; ``x[:, 0]`` where a document begins there.
        context: Gives the documents.

    Shapes:
        x and output: ``[batch, time, *width]``; before: ``[batch, *width]``.
    """
    earlier = torch.cat([before[:, None].to(x.dtype), x[:, :-1]], 1)
    if context.documents is None:
        return earlier
    inside = context.same_document(1)
    inside[:, 0] = True
    return torch.where(inside.view(*inside.shape, *[1] * (x.ndim - 2)), earlier, x)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Products run in the types of their factors: what is fed back into itself wants float32 at least."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
