"""One training step on made-up tokens: what it costs, and whether it can be taken at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.arms import ARMS, Arm, arm_named
from experiments.data import Corpus, Windows
from experiments.errors import RunError
from experiments.evaluation import read_bill
from experiments.frontier import DENSE
from experiments.ledger import Ledger
from experiments.run import DEFAULTS, Run
from experiments.training import any_neighbors, count_step
from mann import LanguageModule, Transformer
from mann.optim import parameter_roles
from retrieval import Passages

# No arm of the library takes as many times the FLOPs of a dense step: of those there are, the dearest takes 1.3.
DEAREST = 10


def step_bill(
    arm: Arm,
    vocab_size: int,
    width: int,
    settings: Mapping[str, Any] | None = None,
    *,
    train: bool = True,
) -> Ledger:
    """What one step of an arm costs, in training or in reading; the search itself is not part of a step.

    Predicted from shapes alone, to the integer that a real step is billed, in no memory to speak of. Only an arm with
    row-sparse tables takes a real step, on made-up tokens: how many rows it moves is decided by the data.

    Args:
        arm: Which arm.
        vocab_size: Number of tokens.
        width: Width of the residual stream.
        settings: Changes to the arm's own.
        train: Forward, backward and optimizer; or else the distributions over the next token alone.

    Raises:
        RunError: If the sizes make no model.
    """
    chosen = DEFAULTS | dict(arm.settings) | dict(settings or {})
    shape = chosen["batch"], chosen["time"] + 1
    tokens = torch.randint(1, vocab_size, shape, generator=torch.Generator().manual_seed(0))
    source = None if arm.source is None else arm.source(_passages(tokens, vocab_size))

    def network() -> Transformer:
        slots = arm.slots(chosen["layers"], source)
        try:
            return Transformer(vocab_size, width, chosen["layers"], chosen["heads"], **slots)
        except ValueError as error:
            raise RunError(f"{arm.name} at width {width}: {error}") from error

    def step(network: Transformer) -> Ledger:
        content: dict[str, Any] = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        content["documents"] = torch.zeros_like(content["tokens"])
        if source is not None:
            content["neighbors"] = any_neighbors(content["tokens"], chosen["k"], len(source.passages))
        if not train:
            return read_bill(network.eval(), content, autocast=chosen["precision"] == "bf16-mixed")
        module = LanguageModule(network, 1, chosen["rates"], chosen["weight_decay"])
        return count_step(module, content, chosen)

    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = network()
        if not (train and parameter_roles(shapes)["table"]):
            return step(shapes)
    return step(network())


def check_sizes(runs: Sequence[Run], arms: Mapping[str, Arm], corpus: Corpus) -> None:
    """Find out before anything is trained that a width makes no model, or that budget or text are too small.

    One step is priced of each arm at each size that differs; of the library's only where the budget is not far above
    what a dense step takes. Whether the text is enough is asked of dense alone: other arms pay more for a token.

    Args:
        runs: What is planned.
        arms: By name.
        corpus: What they would train on and be evaluated on.

    Raises:
        RunError: Naming the run, and what to change.
        CorpusError: If a split is shorter than a window.
    """
    costs: dict[tuple[Any, ...], int] = {}
    held: dict[int, int] = {}
    dense = arm_named(DENSE, arms)

    def cost(arm: Arm, run: Run, *shape: Any) -> int:
        if (arm.name, *shape) not in costs:
            costs[(arm.name, *shape)] = _step_flops(arm, corpus.vocab_size, run)
        return costs[(arm.name, *shape)]

    # The least budgets first: they are the ones that may pay for nothing.
    for run in sorted(runs, key=lambda run: run.budget):
        arm = arm_named(run.arm, arms)
        settings = DEFAULTS | dict(arm.settings) | dict(run.settings)
        batch, time = settings["batch"], settings["time"]
        shape = (run.width, settings["layers"], settings["heads"], batch, time, settings["k"])
        plain = cost(dense, run, *shape)
        sure = ARMS.get(arm.name) is arm and run.budget >= DEAREST * plain
        step = plain if sure else cost(arm, run, *shape)
        if run.budget < step:
            raise RunError(
                f"a budget of {run.budget:.3g} FLOPs pays for no step: {arm.name} of width {run.width} takes "
                f"{step:.3g} for one of {batch} windows. Raise --budgets, lower --widths, or give it a smaller batch"
            )
        if arm.name != DENSE:
            continue
        if time not in held:
            held[time] = {name: len(Windows(split, time)) for name, split in corpus.splits.items()}["train"]
        wanted = int(run.budget / plain) * batch
        if wanted > held[time]:
            enough = run.budget * held[time] / wanted
            raise RunError(
                f"{run.label()} would train on {wanted * time:,} tokens, but the text has {held[time] * time:,}, "
                f"enough for {enough:.1e} FLOPs. Bring more text, or lower --budgets: dense runs go 3.3 times beyond "
                "the largest"
            )


def _step_flops(arm: Arm, vocab_size: int, run: Run) -> int:
    """Of a training step; nothing of an arm that cannot take one here, which is asked about that elsewhere."""
    try:
        return step_bill(arm, vocab_size, run.width, run.settings).flops
    except RunError:
        raise
    except Exception:  # an arm of anybody's, and a store of one batch of made-up tokens
        if arm.name == DENSE:
            raise
        return 0


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
