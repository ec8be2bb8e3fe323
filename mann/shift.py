"""What stood at the position before, across the segments of a text but not across its documents."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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


def tokens_before(
    context: Context, reach: int, marker: int, ids: Int[Tensor, " vocab"] | None = None
) -> list[Int[Tensor, "batch time"]]:
    """The tokens that stood 0, 1, ..., ``reach`` positions before each; a marker where the document had not begun.

    Args:
        context: Gives tokens and documents; with a state, those of earlier segments too.
        reach: How far back.
        marker: What stands before a document begins.
        ids: What each token counts as; ``None``: as itself. The marker is one of these.

    Shapes:
        each: ``[batch, time]``.
    """
    time = context.tokens.shape[1]
    if context.state is None or not reach:
        tokens = context.tokens if ids is None else ids[context.tokens]
        found = [tokens]
        for back in range(1, reach + 1):
            earlier = F.pad(tokens, (back, 0))[:, :time]
            found.append(earlier.masked_fill(~context.same_document(back), marker))
        return found
    stream, labels = context.stream(reach)
    tokens, own = stream if ids is None else ids[stream], labels[:, reach:]
    found = [tokens[:, reach:]]
    for back in range(1, reach + 1):
        here = slice(reach - back, reach - back + time)
        found.append(tokens[:, here].masked_fill(labels[:, here] != own, marker))
    return found


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Products run in the types of their factors: what is fed back into itself wants float32 at least."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
