"""Losses that torch computes in one operator."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from experiments.ledger.elementwise import per_input
from experiments.ledger.price import Call, Price, Rule, numel, priced

# One node of the lattice of a connectionist temporal classification: log-sum-exp of three ways in (12), an emission.
_NODE = 13


def _targets(call: Call) -> int:
    return call["target"].numel()


def _losses(flops: int) -> Rule[int]:
    def count(call: Call) -> int:
        averaged = 0 if call["reduction"] == 0 else 1
        return (flops + averaged) * numel(call.first())

    return Rule(f"{flops}·inputs, + inputs if averaged", count)


def _label_pairs(call: Call) -> int:
    """Every class against every label; which of them are true is known by the values alone."""
    scores: Tensor = call["self"]
    return scores.numel() * scores.shape[-1]


def _lengths(given: Any) -> list[int]:
    return [int(length) for length in (given.tolist() if isinstance(given, Tensor) else given)]


def _lattice(call: Call) -> int:
    """A row of the lattice for every step; its nodes are the labels and the blanks between them."""
    steps, labels = _lengths(call["input_lengths"]), _lengths(call["target_lengths"])
    return sum(time * (2 * length + 1) for time, length in zip(steps, labels, strict=True))


def _lattice_backward(call: Call) -> int:
    # The same from the other end, then the two ends joined (1) and summed into the classes (4).
    return (_NODE + 5) * _lattice(call) + 3 * prod(call["log_probs"].shape)


PRICES: dict[str, Price] = {
    **priced(
        Price(Rule("targets", _targets), because="one term a target"),
        *("nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
    ),
    **priced(Price(_losses(2), because="difference, square"), "mse_loss"),
    **priced(Price(_losses(3), because="difference, magnitude, piece"), "smooth_l1_loss", "huber_loss"),
    **priced(
        Price(_losses(6), because="max(x, 0) - x y + log(1 + e⁻|x|)"),
        *("binary_cross_entropy_with_logits", "binary_cross_entropy"),
    ),
    **priced(per_input(3, "g (x - y) / (x (1 - x))"), "binary_cross_entropy_backward"),
    **priced(Price(_losses(4), because="log(1 + e⁻ˣʸ)"), "soft_margin_loss"),
    **priced(per_input(5, "-g y e⁻ˣʸ / (1 + e⁻ˣʸ)"), "soft_margin_loss_backward"),
    **priced(Price(_losses(3), because="max(0, margin - x[y] + x)"), "multi_margin_loss"),
    **priced(
        Price(
            Rule("2·inputs", lambda call: 2 * call["self"].numel()),
            because="g where the margin is missed; their sum",
        ),
        "multi_margin_loss_backward",
    ),
    **priced(
        Price(
            Rule("4·inputs·classes", lambda call: 4 * _label_pairs(call)),
            because="max(0, 1 - x[y] + x), summed",
        ),
        "multilabel_margin_loss_forward",
    ),
    **priced(
        Price(
            Rule("2·inputs·classes", lambda call: 2 * _label_pairs(call)),
            because="g added to both sides of a pair",
        ),
        "multilabel_margin_loss_backward",
    ),
    **priced(
        Price(
            Rule("13·Σ steps·(2·labels + 1)", lambda call: _NODE * _lattice(call)),
            because="forward pass over labels and blanks: log-sum-exp of three, and a sum",
        ),
        *("_ctc_loss", "_cudnn_ctc_loss"),
    ),
    **priced(
        Price(
            Rule("18·Σ steps·(2·labels + 1) + 3·inputs", _lattice_backward),
            because="the pass from the other end, joined with the first",
        ),
        "_ctc_loss_backward",
    ),
}
