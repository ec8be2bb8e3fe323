"""One training step on made-up tokens: what it costs, and whether it can be taken at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments.arms import Arm, arm_named
from experiments.errors import RunError
from experiments.frontier import DENSE
from experiments.ledger import Ledger
from experiments.run import DEFAULTS, Run
from experiments.training import count_step
from mann import LanguageModule, Transformer
from retrieval import Passages


def step_bill(arm: Arm, vocab_size: int, width: int, settings: Mapping[str, Any] | None = None) -> Ledger:
    """Take one step of an arm and count it; the search itself is not part of a step.

    Args:
        arm: Which arm.
        vocab_size: Number of tokens.
        width: Width of the residual stream.
        settings: Changes to the arm's own.

    Raises:
        RunError: If the sizes make no model.
    """
    chosen = DEFAULTS | dict(arm.settings) | dict(settings or {})
    batch, length, layers = chosen["batch"], chosen["time"], chosen["layers"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size, (batch, length + 1), generator=generator)
    content: dict[str, Any] = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    content["documents"] = torch.zeros_like(content["tokens"])
    source = None
    if arm.source is not None:
        source = arm.source(_passages(tokens, vocab_size))
    try:
        network = Transformer(vocab_size, width, layers, chosen["heads"], **arm.slots(layers, source))
    except ValueError as error:
        raise RunError(f"{arm.name} at width {width}: {error}") from error
    module = LanguageModule(network, 1, chosen["rates"], chosen["weight_decay"])
    return count_step(module, content, chosen, stored=source is not None)


def check_sizes(runs: Sequence[Run], arms: Mapping[str, Arm], vocab_size: int) -> None:
    """Find out before anything is trained that a width makes no model or a budget pays for no step.

    Only dense steps are taken: other arms cost more, and say so themselves.

    Raises:
        RunError: Naming the run, and what to change.
    """
    smallest: dict[int, Run] = {}
    for run in runs:
        if run.width not in smallest or run.budget < smallest[run.width].budget:
            smallest[run.width] = run
    dense = arm_named(DENSE, arms)
    for width, run in smallest.items():
        cost = step_bill(dense, vocab_size, width, run.settings).flops
        if run.budget < cost:
            raise RunError(
                f"a budget of {run.budget:.3g} FLOPs pays for no step: a dense model of width {width} takes "
                f"{cost:.3g} for one. Raise --budgets, or lower --widths"
            )


def _passages(tokens: torch.Tensor, vocab_size: int) -> Passages:
    """The rows as documents, each with its marker."""
    marked = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1).numpy()
    rows, length = marked.shape
    return Passages(
        tokens=marked.reshape(-1).astype(np.uint16),
        offsets=np.arange(rows + 1, dtype=np.int64) * length,
        documents=np.arange(rows, dtype=np.int64),
        vocab_size=vocab_size,
    )
