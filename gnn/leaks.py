"""Does a graph network let the future through? Checks for your own layers and readers, to be called in your tests.

In a graph over a text a later token can reach an earlier one by an edge, by a norm over all nodes, by attention that
has no mask, by a node that both share, by a degree, or because the graph was built from the whole text. Each check
raises :class:`LeakError`, which names positions. They run a network as it is, so give it in train mode: BatchNorm leaks
there and looks clean in evaluation. Dropout is repeated by the seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from retrieval.neighbors import Neighbors

__all__ = ["LeakError", "assert_blind", "assert_causal", "assert_incremental", "assert_prefix_invariant"]

Reader = Callable[[Tensor, Neighbors, Tensor, Tensor | None], Tensor]


class LeakError(AssertionError):
    """What is said at one position depends on a later one."""


def assert_causal(
    network: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch time width"],
    *,
    positions: Iterable[int] | None = None,
    seed: int = 0,
) -> None:
    r"""No output has a gradient towards a later input.

    .. math:: \partial\, y_t / \partial x_s = 0 \quad \text{exactly, for every } s > t

    Exactly, for no rounding makes a number of what does not take part. A sum over outputs with random weights stands
    for all of them, so a leak is missed only by chance.

    Args:
        network: From states to as many states, its graph inside.
        x: States to try it on; double precision keeps faint leaks from being rounded away.
        positions: Which outputs to ask; by default all but the last.
        seed: Draws the weights, and repeats dropout.

    Shapes:
        x: ``[..., time, width]``, output: the same but for the width

    Raises:
        LeakError: At the first output that hears a later input.
        ValueError: If the output has other positions than the input.
    """
    x = x.detach().clone().requires_grad_()
    out = _run(network, x, seed=seed)
    if out.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"{tuple(x.shape)} went in, {tuple(out.shape)} came out: a position must stay one")
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out)
    time = x.shape[-2]
    for t in range(time - 1) if positions is None else positions:
        (gradient,) = torch.autograd.grad(
            (out * weight)[..., t, :].sum(), x, retain_graph=True, allow_unused=True
        )
        if gradient is None:
            continue
        heard = gradient[..., t + 1 :, :].abs().transpose(0, -2).flatten(1).amax(1)
        if (later := heard.nonzero().flatten()).numel():
            s = int(later[0]) + t + 1
            raise LeakError(
                f"the output at position {t} hears the input at {s} (gradient {float(heard[later[0]]):.2g}): look for "
                "norms over all nodes, attention without a mask, nodes that tokens share, and edges from later tokens"
            )


def assert_prefix_invariant(
    network: Callable[[int], Tensor],
    time: int,
    *,
    cuts: Iterable[int] | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
) -> None:
    r"""What was said stays said when text is appended and the graph is built anew.

    .. math:: f(x_{\le n})_t = f(x_{\le T})_t \quad \text{for } t \le n

    Finds what no gradient shows: degrees, sizes, orders, neighbours and clusters that depend on the whole text.

    Args:
        network: Given a length, the outputs on the first so many tokens; builds everything from these alone.
        time: Length of the whole text.
        cuts: Lengths to compare with it; by default half.
        tolerance: How far outputs may differ. Zero asks for the same bits, which kernels that sum in another order in
            another shape do not give.
        seed: Repeats dropout; what it drops must not depend on the length.

    Shapes:
        result of ``network(n)``: ``[..., n, width]``

    Raises:
        LeakError: Where an output has changed.
    """
    whole = _run(network, time, seed=seed)
    for n in (time // 2,) if cuts is None else cuts:
        part = _run(network, n, seed=seed)
        _same(part, whole[..., :n, :], tolerance, f"when the text grows from {n} tokens to {time}")


def assert_incremental(
    network: Callable[[int], Tensor], time: int, *, tolerance: float = 0.0, seed: int = 0
) -> None:
    """Token by token says the same as all at once.

    Args:
        network: As in :func:`assert_prefix_invariant`.
        time: Length of the whole text.
        tolerance: How far outputs may differ.
        seed: Repeats dropout.

    Shapes:
        result of ``network(n)``: ``[..., n, width]``

    Raises:
        LeakError: Where the last output of a prefix is not that of the whole text.
    """
    whole = _run(network, time, seed=seed)
    for n in range(1, time + 1):
        last = _run(network, n, seed=seed)[..., -1:, :]
        _same(
            last,
            whole[..., n - 1 : n, :],
            tolerance,
            f"when the {time - n} tokens after {n - 1} are read too",
            n - 1,
        )


def assert_blind(
    reader: Reader,
    x: Float[Tensor, "batch time width"],
    neighbors: Neighbors,
    window: Tensor,
    visible_from: Tensor,
    *,
    poison: int = 1,
    seed: int = 0,
) -> None:
    """What is not yet visible may say anything.

    Writes a token, say the true next one, all over the windows of entries that a position must not see yet, gives them
    the highest score, and wants the same output, bit for bit.

    Args:
        reader: Called as ``reader(x, neighbors, window, visible_from)``, like :class:`~gnn.GraphReader`.
        x: States.
        neighbors: What the search returned.
        window: Tokens around each neighbour.
        visible_from: First position of the row that may see each neighbour.
        poison: The token.
        seed: Repeats dropout.

    Shapes:
        x: ``[batch, time, width]``, window: ``[batch, time, k, w]``, visible_from: ``[batch, time, k]``

    Raises:
        LeakError: Where the output has changed.
        ValueError: If every entry is visible, so that nothing is asked.
    """
    time = torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
    hidden = (visible_from > time) & neighbors.mask
    if not hidden.any():
        raise ValueError(
            "every neighbour is visible where it was retrieved: give stamps of which some lie ahead"
        )
    told = neighbors.scores.masked_fill(hidden, float(neighbors.scores[neighbors.mask].max()) + 10)
    poisoned = dataclasses.replace(neighbors, scores=told)
    words = window.masked_fill(hidden[..., None], poison)
    clean = _run(reader, x, neighbors, window, visible_from, seed=seed)
    _same(
        _run(reader, x, poisoned, words, visible_from, seed=seed),
        clean,
        0.0,
        "when hidden entries say otherwise",
    )


def _run(network: Callable[..., Tensor], *inputs: object, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(*inputs)


def _same(found: Tensor, wanted: Tensor, tolerance: float, when: str, first: int = 0) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"outputs of shape {tuple(found.shape)} where {tuple(wanted.shape)} should be")
    # What is no number on both sides is the same.
    off = (found - wanted).abs().masked_fill(found.isnan() & wanted.isnan(), 0).nan_to_num(torch.inf)
    off = off.transpose(0, -2).flatten(1).amax(1)
    if (changed := (off > tolerance).nonzero().flatten()).numel():
        t = int(changed[0])
        raise LeakError(
            f"the output at position {t + first} changes by {float(off[t]):.2g} {when} (allowed: {tolerance:.2g})"
        )
