"""What attention is given under ``vmap``, with sequences of unequal length, or with a mask that is only a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]

Parts = tuple[Tensor, Tensor, Tensor, Tensor | None]


def meant(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
) -> Iterator[tuple[Parts, bool]]:
    """The same attention with every row it has: in one piece, or sequence by sequence.

    Args:
        query: ``[..., time, d_key]``; as all others, perhaps one of many that ``vmap`` runs at once, or nested.
        key: ``[..., source, d_key]``.
        value: ``[..., source, d_value]``.
        mask: As ``scaled_dot_product_attention`` takes it.
        causal: Whether the upper triangle is left out.
    """
    if query.is_nested:
        for sequence in zip(query.unbind(), key.unbind(), value.unbind(), strict=True):
            yield (*sequence, None), causal
        return
    query, key, value, *rest = unbatched([part for part in (query, key, value, mask) if part is not None])
    yield (query, key, value, rest[0] if rest else None), causal


def spelled_out(query: Tensor, key: Tensor, mask: Any, causal: bool) -> tuple[Tensor | None, bool]:
    """A mask of ``torch.nn.attention.bias``, which has no values of its own, as a causal one or one with values.

    Torch knows such a mask by the very function it is given to, and would take what lies in memory for its values
    where that function has been replaced.
    """
    square = query.shape[-2] == key.shape[-2]
    if causal or square or mask.variant.name == "UPPER_LEFT":
        return None, True
    return mask._materialize(query.device), False


def unbatched(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors without what function transforms wrap them in: each dimension of ``vmap`` is one more in front.

    To be called under ``torch._C._DisableFuncTorch``.
    """
    peeled = [_peeled(part) for part in parts]
    levels = sorted({level for _, mapped, _ in peeled for level in mapped})
    rank = max(len(rest) for *_, rest in peeled)
    return [_with_levels(*one, levels, rank) for one in peeled]


def _peeled(part: Tensor) -> tuple[Tensor, dict[int, int], list[int]]:
    """What is inside; which of its dimensions each level maps over; the other dimensions."""
    wrapped: list[tuple[int, int]] = []
    while (level := _functorch.maybe_get_level(part)) > 0:
        if _functorch.is_batchedtensor(part):
            wrapped.append((level, _functorch.maybe_get_bdim(part)))
        part = _functorch.get_unwrapped(part)
    rest = list(range(part.ndim))
    # The innermost level counts all dimensions, each further one those that are left.
    return part, {level: rest.pop(place) for level, place in reversed(wrapped)}, rest


def _with_levels(
    part: Tensor, mapped: dict[int, int], rest: list[int], levels: list[int], rank: int
) -> Tensor:
    part = part.permute([*(mapped[level] for level in levels if level in mapped), *rest])
    # What is the same for all has one in the place of many, as where shapes are broadcast.
    lead = [
        part.shape[sum(low in mapped for low in levels[:i])] if level in mapped else 1
        for i, level in enumerate(levels)
    ]
    return part.reshape([*lead, *[1] * (rank - len(rest)), *part.shape[len(mapped) :]])
