"""One text in segments: what a slot that streams must make of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mann import Context, State
from retrieval import Passages, SuffixSource
from tests.mann.inputs import assert_same

# Even and odd, shorter than a chunk and longer, and one that ends where a document does in row 1.
LENGTHS = (7, 1, 12, 4, 16)
TIME = sum(LENGTHS)


def changing() -> Tensor:
    """Labels of three rows: changes inside segments, between them, and in the last row nowhere."""
    found = torch.zeros(3, TIME, dtype=torch.long)
    found[0, 3:], found[0, 10:], found[0, 11:], found[0, 30:] = 1, 0, 2, 5
    found[1, 8:], found[1, 20:] = 3, 4
    return found


def numbered(x: Tensor) -> Tensor:
    """Tokens for states: some of each row repeat."""
    return (torch.arange(x.shape[0])[:, None] + torch.arange(x.shape[1])) * 7 % 11


class Weighing(nn.Module):
    """States times what is said by one that hears tokens alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Their product."""
        return x * self.module(x, context)


def quoting(vocab_size: int) -> SuffixSource:
    """A store of what :func:`numbered` says: one to five tokens of it a document, each with an answer of its own."""
    found = [
        [12 + length, *((first + 7 * step) % 11 for step in range(length)), 18 + length]
        for length in range(1, 6)
        for first in range(11)
    ]
    ends = np.cumsum([0, *map(len, found)])
    return SuffixSource(
        Passages(np.concatenate(found).astype(np.uint16), ends, vocab_size=vocab_size), max_order=6
    )


def in_segments(
    module: nn.Module,
    x: Tensor,
    documents: Tensor | None,
    state: State,
    lengths: Sequence[int] = LENGTHS,
    at: int = 0,
) -> Tensor:
    """The outputs of one call a segment; ``at`` says where in the text the first of them begins."""
    found, begin = [], 0
    tokens = numbered(torch.empty(x.shape[0], at + x.shape[1]))[:, at:]
    for length in lengths:
        here = slice(begin, begin + length)
        labels = None if documents is None else documents[:, here]
        found.append(module(x[:, here], Context(tokens[:, here], labels, state=state)))
        begin += length
    return torch.cat(found, 1)


def assert_segments(module: nn.Module, x: Tensor, documents: Tensor | None, tolerance: float = 1e-9) -> None:
    """Outputs, and gradients through all segments, are those of one call."""
    tokens = numbered(x)
    assert_same(
        lambda x, *_: in_segments(module, x, documents, State()),
        lambda x, *_: module(x, Context(tokens, documents)),
        x,
        *module.parameters(),
        tolerance=tolerance,
    )


def assert_goes_on(module: nn.Module, x: Tensor, documents: Tensor | None, folder: Path) -> None:
    """A state that was saved and loaded goes on bit for bit; once detached it has the same values, no gradient."""
    state = State()
    first, last = LENGTHS[:3], LENGTHS[3:]
    half = sum(first)
    labels = None if documents is None else documents[:, half:]
    in_segments(module, x[:, :half], documents, state, first)
    torch.save(state.state_dict(), folder / "state.pt")
    again = State()
    again.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    on = in_segments(module, x[:, half:], labels, state, last, half)
    assert torch.equal(in_segments(module, x[:, half:], labels, again, last, half), on)
    fresh = in_segments(module, x[:, half:], labels, State(), last, half)
    assert not torch.equal(fresh, on)
    cut = State()
    in_segments(module, x[:, :half], documents, cut, first)
    cut.detach()
    later = in_segments(module, x[:, half:], labels, cut, last, half)
    assert torch.equal(later, on)
    (grad,) = torch.autograd.grad(later.square().sum(), x, allow_unused=True)
    assert grad is None or not grad[:, :half].any()
