from __future__ import annotations

import torch
from torch import Tensor

from retrieval.neighbors import Neighbors


def random_inputs(
    *, batch=2, time=6, k=4, w=4, vocab_size=11, d_model=8, dtype=torch.float64, seed=0
) -> tuple[Tensor, Neighbors, Tensor]:
    """States, neighbours (some masked) and windows (some positions outside the passage)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, d_model, generator=generator, dtype=dtype)
    scores = (20 * torch.rand(batch, time, k, generator=generator)).sort(-1, descending=True).values
    mask = torch.rand(batch, time, k, generator=generator) < 0.7
    neighbors = Neighbors(scores * mask, torch.zeros_like(mask, dtype=torch.int64), mask)
    window = torch.randint(0, vocab_size, (batch, time, k, w), generator=generator)
    return x, neighbors, window


def opened(reader):
    """A reader whose output projection and score weights are no longer at their start."""
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return reader
