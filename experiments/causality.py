"""Whether an arm reads the future, found out on one small batch before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.arms import ARMS, Arm, arm_named
from experiments.data import Corpus, Windows, training_order
from experiments.errors import RunError, own_line, told
from experiments.run import DEFAULTS, Run
from mann import Transformer
from retrieval import Neighbors, Source

# Rows of the batch, and windows in the store that is made for it.
ROWS = 2
STORED = 64
# How far every parameter is moved: closed gates and a head of zeros would hide what comes through them.
MOVED = 0.3
# Sums in another order are no news of the future.
TOLERANCE = 1e-4


def check_causality(runs: Sequence[Run], arms: Mapping[str, Arm], corpus: Corpus) -> list[str]:
    """Refuse an arm whose outputs change with tokens, targets or neighbours of later positions, in train mode.

    Arms of the library are left out: the tests of the house ask them. One small batch of the training text an arm, at
    the sizes of its smallest run.

    Args:
        runs: What is planned.
        arms: By name.
        corpus: What they would train on.

    Returns:
        A sentence for each arm that could not be asked.

    Raises:
        RunError: Naming the arm, the position that hears a later one, and what to do.
    """
    notes: list[str] = []
    for run in {run.arm: run for run in sorted(runs, key=lambda run: -run.width)}.values():
        arm = arm_named(run.arm, arms)
        if ARMS.get(run.arm) is not arm:
            notes += _Asked(run, arm, corpus).notes()
    return notes


class _Asked:
    def __init__(self, run: Run, arm: Arm, corpus: Corpus) -> None:
        self.arm = arm
        self.run = run
        self.corpus = corpus
        self.settings: dict[str, Any] = DEFAULTS | dict(arm.settings) | dict(run.settings)
        windows = Windows(corpus.train, self.settings["time"])
        self.order = training_order(len(windows), run.seed)
        self.batch = windows.batch(self.order[:ROWS])
        self.windows = windows

    def notes(self) -> list[str]:
        """Ask the arm; what stood in the way, if anything did."""
        try:
            source = self._source()
        except Exception as error:  # a store of few tokens may be refused where that of a run is not
            return [self._not_asked(f"a store of {STORED} windows cannot be built for it ({told(error)})")]
        torch.manual_seed(self.run.seed)
        size = self.corpus.vocab_size, self.run.width, self.settings["layers"], self.settings["heads"]
        try:
            network = Transformer(*size, **self.arm.slots(self.settings["layers"], source))
            return self._ask(network.train(), source) or self._ask(network.eval(), source)
        except RunError:
            raise
        except Exception as error:
            line = own_line(error)
            raise RunError(
                f"arm {self.arm.name!r} cannot read a batch{f' ({line})' if line else ''}: {told(error)}. Correct it, "
                "then give the same command again"
            ) from error

    def _not_asked(self, why: str) -> str:
        return f"{self.arm.name} was not asked whether it reads the future: {why}"

    def _source(self) -> Source | None:
        if self.arm.source is None:
            return None
        return self.arm.source(self.windows.passages(self.order[-STORED:], self.corpus.vocab_size))

    def _ask(self, network: Transformer, source: Source | None) -> list[str]:
        tokens, targets, documents = (self.batch[name] for name in ("tokens", "targets", "documents"))
        found = None if source is None else self._found(source, tokens, documents)
        self._outputs(network, tokens, targets, found)  # what is made at the first use is moved too
        _move(network)
        state = copy.deepcopy(network.state_dict())
        before, again = (self._outputs(network, tokens, targets, found, state) for _ in range(2))
        time = tokens.shape[1]
        if (first := _heard(before, again, time)) is not None:
            return [self._not_asked(f"position {first} says something else each time it reads the same")]
        # At the first positions, within and at the end of blocks, and at the last one.
        for cut in sorted({cut for cut in (1, 2, 31, 64, time // 2 + 1, time - 1) if 0 < cut < time}):
            late = torch.arange(time) >= cut
            other = torch.where(late, 1 + tokens % (self.corpus.vocab_size - 1), tokens)
            aims = torch.where(late & (targets >= 0), 1 + targets % (self.corpus.vocab_size - 1), targets)
            near = None if found is None else _moved(found, late)
            after = self._outputs(network, other, aims, near, state)
            if (first := _heard(before, after, cut)) is not None:
                raise self._refusal(cut, f"position {first} says something else")
            if source is not None and found is not None:
                near = self._found(source, other, documents)
                if not torch.equal(near.ids[:, :cut], found.ids[:, :cut]):
                    raise self._refusal(cut, "its source finds other neighbours before it")
        return []

    def _found(self, source: Source, tokens: Tensor, documents: Tensor) -> Neighbors:
        return source.search(tokens, self.settings["k"], documents=documents)

    def _outputs(
        self,
        network: Transformer,
        tokens: Tensor,
        targets: Tensor,
        neighbors: Neighbors | None,
        state: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and losses, from the same state and by the same random numbers each time."""
        documents, found = self.batch["documents"], []
        for ask in (partial(network, tokens), partial(network.loss, tokens, targets)):
            if state is not None:
                network.load_state_dict(state)
            torch.manual_seed(self.run.seed)
            with torch.no_grad():
                found.append(ask(documents=documents, neighbors=neighbors))
        return found[0], found[1]

    def _refusal(self, cut: int, then: str) -> RunError:
        what = "tokens" if self.arm.source is None else "tokens and neighbours"
        return RunError(
            f"arm {self.arm.name!r} reads the future: with other {what} from position {cut} on, {then}. Make its "
            "output at a position depend on that position and earlier ones alone (no flip, mean or normalisation over "
            "time; a convolution padded on the left), then give the same command again"
        )


def _heard(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], cut: int) -> int | None:
    """The first position before ``cut`` at which two outputs differ."""
    for one, other in zip(before, after, strict=True):
        close = torch.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        heard = ~close[:, :cut].reshape(len(close), cut, -1).all(-1)
        if heard.any():
            return int(heard.any(0).nonzero()[0])
    return None


def _move(network: Transformer) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((MOVED * noise).to(parameter.dtype))


def _moved(found: Neighbors, late: Tensor) -> Neighbors:
    """Other neighbours at the late positions: those of the position before."""

    def moved(part: Tensor) -> Tensor:
        return torch.where(late[:, None], part.roll(1, 1), part)

    return Neighbors(moved(found.scores), moved(found.ids), moved(found.mask))
