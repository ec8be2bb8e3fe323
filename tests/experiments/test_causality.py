"""Arms that read the future are refused by name before anything is trained; others are let through."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.arms import ARMS, NO_STORE, SAME_TOKENS, Arm
from experiments.causality import check_causality
from experiments.errors import RunError
from experiments.run import Run
from gnn import GraphReader
from mann import ExternalMemory, Memory, NGramMemory, SoftmaxReadout
from retrieval import Neighbors, SuffixSource
from tests.experiments.data import toy

CORPUS = toy.corpus(n=400, vocab_size=29)


class Past(Memory):
    """Reads itself alone; what others do to it is for those below."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mix = nn.Linear(d_model, d_model)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.gate * self.mixed(self.mix(x), context)

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x


class Flipped(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x.flip(1)


class FlippedInEval(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x if self.training else x.flip(1)


class NextToken(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x + context.tokens.roll(-1, 1)[..., None]


class Normalised(Past):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.norm = nn.BatchNorm1d(d_model)

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Dropped(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Moody(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x * random.random()


class Short(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x[:, :3]


class LaterNeighbours(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x + context.neighbors.ids.float().mean(-1, keepdim=True).flip(1)


class Cheating(SoftmaxReadout):
    def forward(self, x: Tensor, context: Any, targets: Tensor | None = None) -> Tensor:
        return super().forward(x if targets is None else x + targets.roll(-1, 1)[..., None], context, targets)


class LookingAhead(SuffixSource):
    def search(self, tokens: Tensor, *given: Any, **options: Any) -> Neighbors:
        return super().search(tokens.roll(-1, 1), *given, **options)


def memory(cls: type[Memory]) -> Arm:
    return Arm("mine", lambda n_layers, source: {"memory": {1: cls}})


def stored(reader: Any = None) -> Any:
    options = {} if reader is None else {"reader": reader}
    return lambda n_layers, source: {"memory": {1: partial(ExternalMemory, source=source, **options)}}


def notes(arm: Arm) -> list[str]:
    regime = NO_STORE if arm.source is None else SAME_TOKENS
    run = Run("toy", arm.name, regime, 0, 16, 1e9, {"time": 48, "k": 4, "layers": 2})
    return check_causality([run], ARMS | {arm.name: arm}, CORPUS)


@pytest.mark.parametrize("cls", [Flipped, FlippedInEval, NextToken, Normalised])
def test_a_memory_that_reads_the_future_is_refused_by_name(cls: type[Memory]) -> None:
    with pytest.raises(RunError, match="arm 'mine' reads the future: with other tokens from position"):
        notes(memory(cls))


def test_so_are_later_neighbours_targets_and_a_source_that_looks_ahead() -> None:
    with pytest.raises(RunError, match="with other tokens and neighbours from position"):
        notes(Arm("mine", memory(LaterNeighbours).slots, SuffixSource))
    with pytest.raises(RunError, match="reads the future"):
        notes(Arm("mine", lambda n_layers, source: {"readout": Cheating}))
    with pytest.raises(RunError, match="its source finds other neighbours"):
        notes(Arm("mine", stored(), LookingAhead))


@pytest.mark.parametrize(
    "arm",
    [
        memory(Past),
        memory(Dropped),
        memory(NGramMemory),
        Arm("mine", stored(), SuffixSource),
        Arm("mine", stored(GraphReader), SuffixSource),
    ],
)
def test_arms_that_read_what_came_before_pass(arm: Arm) -> None:
    assert notes(arm) == []


def test_what_cannot_be_asked_is_said_and_what_cannot_run_is_refused_with_its_line() -> None:
    def refusing(passages: Any) -> Any:
        raise ValueError("too few entries")

    (note,) = notes(memory(Moody))
    assert "mine was not asked whether it reads the future: position 0 says something else each time" in note
    (note,) = notes(Arm("mine", stored(), refusing))
    assert "cannot be built for it (ValueError: too few entries)" in note
    with pytest.raises(RunError, match=r"arm 'mine' cannot read a batch.* RuntimeError: .* Correct it"):
        notes(memory(Short))


def test_arms_of_the_library_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.causality.Transformer", None)
    run = Run("toy", "ngram", SAME_TOKENS, 0, 16, 1e9, {})
    assert check_causality([run], ARMS, CORPUS) == []
