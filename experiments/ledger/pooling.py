"""Windows over images: pooling, interpolation, sampling at places, folding."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

from torch import Tensor

from experiments.ledger.elementwise import per_input
from experiments.ledger.price import MOVED, NOTHING, Call, Price, Rule, Traffic, priced, stored


def _window(call: Call, dims: int) -> int:
    """Places in one window: a single number stands for all sides."""
    sides = list(call["kernel_size"])
    return prod(sides * dims if len(sides) == 1 else sides)


def _pooled(dims: int) -> Rule[int]:
    return Rule(
        "window·outputs",
        lambda call: _window(call, dims) * (call.out[0] if isinstance(call.out, tuple) else call.out).numel(),
    )


def _spread(dims: int) -> Rule[int]:
    return Rule(
        "(window + 1)·gradients", lambda call: (_window(call, dims) + 1) * call["grad_output"].numel()
    )


def _seen(image: Tensor, out: Tensor, dims: int) -> int:
    """Elements that adaptive windows see: from ⌊i·in/out⌋ to ⌈(i + 1)·in/out⌉."""
    sides = zip(image.shape[-dims:], out.shape[-dims:], strict=True)
    lengths = [sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in sides]
    return prod(image.shape[:-dims]) * prod(lengths)


def _adaptive(dims: int) -> Rule[int]:
    def count(call: Call) -> int:
        out = call.out[0] if isinstance(call.out, tuple) else call.out
        return _seen(call.first(), out, dims)

    return Rule("elements the windows see", count)


def _adaptive_spread(dims: int) -> Rule[int]:
    return Rule(
        "elements the windows see + gradients",
        lambda call: _seen(call["self"], call["grad_output"], dims) + call["grad_output"].numel(),
    )


def _gradients(call: Call) -> int:
    return call["grad_output"].numel()


def _placed(call: Call) -> Traffic:
    """As inputs and outputs; the values go to, or come from, the places the index names."""
    read, written = stored(call.read()), stored(call.written())
    source = call["grad_output"] if call["grad_output"] is not None else call.first()
    return Traffic(read, written, source.numel() * source.element_size())


_PLACED = Rule("inputs + outputs", _placed)


def _blended(taps: int) -> Rule[int]:
    def count(call: Call) -> int:
        given = call["grad_output"]
        return 2 * taps * (call.out if given is None else given).numel()

    return Rule(f"{2 * taps}·outputs", count)


def _antialiased(reach: int) -> Callable[[Call], int]:
    """Rows, then columns: each output blends ``reach`` inputs, or as many more as the image shrinks."""

    def count(call: Call) -> int:
        backward = call["grad_output"] is not None
        small = call["grad_output"] if backward else call.out
        rows, columns = call["input_size"][-2:] if backward else call.first().shape[-2:]
        high, wide = small.shape[-2:]
        across = 2 * rows * wide * ceil(reach * max(columns / wide, 1))
        down = 2 * high * wide * ceil(reach * max(rows / high, 1))
        return prod(small.shape[:-2]) * (across + down)

    return count


def _sampled(dims: int) -> Callable[[Call], int]:
    """Coordinates put on pixels (3 each), weights of the taps, then a weighted sum of the taps."""

    def count(call: Call) -> int:
        mode, grid = call["interpolation_mode"], call["grid"]
        places = grid.numel() // dims
        channels = call.first().shape[1] if call["grad_output"] is None else call["grad_output"].shape[1]
        side, weight = ((2, 2), (1, 1), (4, 24))[mode]
        taps = side**dims
        combined = taps * (dims - 1)
        here = places * (3 * dims + weight * dims + combined)
        once = 2 * taps * places * channels if taps > 1 else 0
        if call["grad_output"] is None:
            return here + once
        for_input, for_grid = call["output_mask"] or (True, True)
        put_back = once or places * channels
        return here + put_back * for_input + once * dims * for_grid

    return count


def _affine(call: Call) -> int:
    dims = call.first().shape[-1] - 1
    return 2 * (call.out.numel() // dims) * dims * (dims + 1)


def _named(pattern: str, dims: tuple[int, ...], price: Callable[[int], Price]) -> dict[str, Price]:
    return {f"aten.{pattern.format(d)}": price(d) for d in dims}


_NEAREST = tuple(f"{kind}{d}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3))
_LINEAR = {
    "upsample_linear1d": 2,
    "upsample_bilinear2d": 4,
    "upsample_trilinear3d": 8,
    "upsample_bicubic2d": 16,
}
_ANTIALIASED = {"_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 4, "_upsample_lanczos2d_aa": 6}
_PADDED = tuple(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3))
_BOTH = (2, 3)

PRICES: dict[str, Price] = {
    **_named("avg_pool{}d", _BOTH, lambda d: Price(_pooled(d), because="a mean of each window")),
    **_named(
        "avg_pool{}d_backward",
        _BOTH,
        lambda d: Price(_spread(d), because="divided, summed where windows meet"),
    ),
    **_named(
        "max_pool{}d_with_indices",
        _BOTH,
        lambda d: Price(_pooled(d), because="one comparison an element seen"),
    ),
    **_named(
        "fractional_max_pool{}d", _BOTH, lambda d: Price(_pooled(d), because="one comparison an element seen")
    ),
    **priced(Price(_pooled(1), because="one comparison an element seen"), "max_pool1d"),
    **priced(Price(_pooled(1), because="a mean of each window"), "avg_pool1d.out"),
    **_named(
        "adaptive_avg_pool{}d.out",
        (1, *_BOTH),
        lambda d: Price(_adaptive(d), because="a mean of each window"),
    ),
    **priced(
        Price(_adaptive_spread(3), because="divided, summed where windows meet"),
        "adaptive_avg_pool3d_backward",
    ),
    **_named("_adaptive_avg_pool{}d", _BOTH, lambda d: Price(_adaptive(d), because="a mean of each window")),
    **_named(
        "_adaptive_avg_pool{}d_backward",
        _BOTH,
        lambda d: Price(_adaptive_spread(d), because="divided, summed where windows meet"),
    ),
    **_named(
        "adaptive_max_pool{}d", _BOTH, lambda d: Price(_adaptive(d), because="one comparison an element seen")
    ),
    **priced(
        Price(Rule("gradients", _gradients), _PLACED, "summed into the place of the maximum"),
        *(f"{kind}{d}d_backward" for kind in ("adaptive_max_pool", "fractional_max_pool") for d in _BOTH),
        *(f"max_pool{d}d_with_indices_backward" for d in _BOTH),
    ),
    **priced(Price(NOTHING, _PLACED, "values put where the maxima were"), "max_unpool2d", "max_unpool3d"),
    **priced(Price(NOTHING, MOVED, "a copy of the nearest"), *_NEAREST),
    **priced(
        Price(Rule("gradients", _gradients), because="summed into the nearest"),
        *(f"{name}_backward" for name in _NEAREST),
    ),
    **{
        f"aten.{name}{suffix}": Price(_blended(taps), because=f"weighted sum of {taps} neighbours")
        for name, taps in _LINEAR.items()
        for suffix in ("", "_backward")
    },
    **{
        f"aten.{name}{suffix}": Price(
            Rule("2·taps·(rows in·columns out + outputs)", _antialiased(reach)),
            because=f"columns then rows; {reach} taps, more where the image shrinks",
        )
        for name, reach in _ANTIALIASED.items()
        for suffix in ("", "_backward")
    },
    **{
        f"aten.grid_sampler_{d}d{suffix}": Price(
            Rule(
                "places·weights + 2·taps·outputs"
                + (" for the image, d times as much for the grid" if suffix else ""),
                _sampled(d),
            ),
            because="weighted sum of the taps; weights are shared by the channels",
        )
        for d in _BOTH
        for suffix in ("", "_backward")
    },
    **{
        f"aten._grid_sampler_2d_cpu_fallback{suffix}": Price(
            Rule("as grid_sampler_2d", _sampled(2)), because="the same in another kernel"
        )
        for suffix in ("", "_backward")
    },
    **priced(
        Price(Rule("2·places·d·(d + 1)", _affine), because="one small product a place"),
        "affine_grid_generator",
    ),
    **priced(Price(NOTHING, MOVED, "values are moved, not computed"), *_PADDED, "im2col"),
    **priced(
        per_input(1, "overlapping parts are summed"), "col2im", *(f"{name}_backward" for name in _PADDED)
    ),
}
