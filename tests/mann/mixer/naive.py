"""Mixers as their formulas say, position by position, for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mann.norm import EPSILON
from mann.projection import QueriesKeysValues
from mann.rotary import rotary_tables
from tests.mann.inputs import runs


def turned(layer: QueriesKeysValues, x: Tensor, positions: Tensor) -> Tensor:
    """Vectors ``[..., time, heads, d_head]`` rotated by their positions."""
    half = x.shape[-1] // 2
    tables = rotary_tables(int(positions.max()) + 1, x.shape[-1], layer.base, x.device, x.dtype)
    cosine, sine = (table[positions][:, None] for table in tables)
    return x * cosine + torch.cat([x[..., half:], x[..., :half]], -1) * sine


def prepared(layer: QueriesKeysValues, x: Tensor, documents: Tensor | None, rotated: bool = True):
    """Queries, keys and values of every position and head, ``[batch, time, heads, d_head]``."""
    batch, time, width = x.shape
    q, k, v = (
        layer.qkv(x)[..., width * i : width * (i + 1)].unflatten(-1, (layer.n_heads, -1)) for i in range(3)
    )
    run, share = runs(documents, batch, time), layer.shift.sigmoid()
    shifted = [k[:, 0]]
    for t in range(1, time):
        same = (run[:, t] == run[:, t - 1])[:, None, None]
        shifted.append(torch.where(same, (1 - share) * k[:, t] + share * k[:, t - 1], k[:, t]))
    q = layer.scale * F.rms_norm(q, q.shape[-1:], eps=EPSILON)
    k = F.rms_norm(torch.stack(shifted, 1), q.shape[-1:], eps=EPSILON)
    if rotated:
        q, k = (turned(layer, part, torch.arange(time)) for part in (q, k))
    return q, k, v


def visible(documents: Tensor | None, batch: int, time: int, window: int | None = None) -> Tensor:
    """[batch, query, key]: not later, in the window, and no change of document between them."""
    run = runs(documents, batch, time)
    age = torch.arange(time)[:, None] - torch.arange(time)
    near = (age >= 0) & (age < (time if window is None else window))
    return (run[:, :, None] == run[:, None, :]) & near


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax over what a mask ``[batch, query, key]`` shows, head by head; ``[batch, time, heads, d_head]``."""
    scores = torch.einsum("bthd,bshd->bhts", q, k).masked_fill(~mask[:, None], float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
