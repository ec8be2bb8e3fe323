"""Arms that read the future, mix rows or bend their losses are refused by name; others are let through."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.arm_checks import check_arms
from experiments.arms import ARMS, NO_STORE, SAME_TOKENS, Arm
from experiments.errors import RunError
from experiments.run import Run
from gnn import GraphReader
from mann import ExternalMemory, Memory, NGramMemory, SoftmaxReadout
from retrieval import Neighbors, SuffixSource
from retrieval.rolling import RollingMemory
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


class ToTheEnd(Past):
    """How far it is to the end of the document, which the text so far does not tell."""

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        same = context.documents[:, :, None] == context.documents[:, None, :]
        return x + same.triu(1).sum(-1)[..., None]


class Rooted(Past):
    """Not a number for parameters below zero, as those moved by much are."""

    begin = 0.05

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.scale = nn.Parameter(torch.full((d_model,), self.begin))

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x * self.scale.sqrt()


class FlippedRooted(Rooted):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return super().mixed(x, context).flip(1)


class RootedAtZero(Rooted):
    begin = 0.0


class RootedBelowZero(Rooted):
    begin = -1.0


class AcrossRows(Past):
    """Takes rows for time, as modules of PyTorch do unless told otherwise."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.recurrent = nn.LSTM(d_model, d_model)

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return self.recurrent(x)[0]


class AttendingRows(Past):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.attention = nn.MultiheadAttention(d_model, 2)

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class AlongTime(AcrossRows):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.recurrent = nn.LSTM(d_model, d_model, batch_first=True)


class Growing(Past):
    """Keeps what earlier batches were."""

    seen: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.register_buffer("seen", torch.zeros(1, d_model))

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        earlier = self.seen.mean(0)
        self.seen = torch.cat([self.seen, x.detach().flatten(0, 1)])
        return x + earlier


class Rolling(Past):
    """Keeps what each row was given before in a store that is no part of the state."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.past = RollingMemory(rows=3, heads=1, capacity=512, d_key=d_model, d_value=d_model)

    def mixed(self, x: Tensor, context: Any) -> Tensor:
        found = self.past.gather(self.past.search(x[:, None], k=4))
        self.past.add(x[:, None], x[:, None])
        return x + found.values.masked_fill(~found.mask[..., None], 0.0).mean(3)[:, 0]


class Locked(Past):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.lock = threading.Lock()


class MoodyInTraining(Past):
    def mixed(self, x: Tensor, context: Any) -> Tensor:
        return x * random.random() if self.training else x.flip(1)


class Flattering(SoftmaxReadout):
    def forward(self, x: Tensor, context: Any, targets: Tensor | None = None) -> Tensor:
        out = super().forward(x, context, targets)
        return out if targets is None else 0.9 * out


class Penalised(SoftmaxReadout):
    """A further term while it trains is its own business."""

    def forward(self, x: Tensor, context: Any, targets: Tensor | None = None) -> Tensor:
        out = super().forward(x, context, targets)
        return out if targets is None or not self.training else out + 0.1 * x.square().mean(-1)


class Logits(SoftmaxReadout):
    def forward(self, x: Tensor, context: Any, targets: Tensor | None = None) -> Tensor:
        return self.head(x) if targets is None else super().forward(x, context, targets)


class OneMore(SoftmaxReadout):
    def forward(self, x: Tensor, context: Any, targets: Tensor | None = None) -> Tensor:
        out = super().forward(x, context, targets)
        return nn.functional.pad(out, (0, 1), value=-torch.inf) if targets is None else out


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


def unasked(arm: Arm) -> dict[str, str]:
    regime = NO_STORE if arm.source is None else SAME_TOKENS
    run = Run("toy", arm.name, regime, 0, 16, 1e9, {"time": 48, "k": 4, "layers": 2})
    return check_arms([run], ARMS | {arm.name: arm}, CORPUS)


def read_out(cls: type[SoftmaxReadout]) -> Arm:
    return Arm("mine", lambda n_layers, source: {"readout": cls})


@pytest.mark.parametrize("cls", [Flipped, FlippedInEval, NextToken, Normalised, FlippedRooted])
def test_a_memory_that_reads_the_future_is_refused_by_name(cls: type[Memory]) -> None:
    with pytest.raises(RunError, match="arm 'mine' reads the future: with other tokens from position"):
        unasked(memory(cls))


def test_so_are_later_neighbours_targets_documents_and_a_source_that_looks_ahead() -> None:
    with pytest.raises(RunError, match="reads the future: with other neighbours from position"):
        unasked(Arm("mine", memory(LaterNeighbours).slots, SuffixSource))
    with pytest.raises(RunError, match="reads the future: with other targets from position"):
        unasked(read_out(Cheating))
    with pytest.raises(RunError, match="reads the future: with other documents from position"):
        unasked(memory(ToTheEnd))
    with pytest.raises(RunError, match="its source finds other neighbours"):
        unasked(Arm("mine", stored(), LookingAhead))


@pytest.mark.parametrize("cls", [AcrossRows, AttendingRows])
def test_a_memory_that_mixes_rows_is_refused_by_name(cls: type[Memory]) -> None:
    with pytest.raises(
        RunError, match=r"mixes the rows of a batch: with other tokens in row \d, .*batch_first"
    ):
        unasked(memory(cls))


@pytest.mark.parametrize(
    "arm",
    [
        memory(Past),
        memory(Dropped),
        memory(Rooted),
        memory(AlongTime),
        memory(Growing),
        memory(Rolling),
        memory(NGramMemory),
        read_out(Penalised),
        Arm("mine", stored(), SuffixSource),
        Arm("mine", stored(GraphReader), SuffixSource),
        Arm("mine", ARMS["knn"].slots, ARMS["knn"].source),
    ],
)
def test_arms_that_read_what_came_before_pass(arm: Arm) -> None:
    assert unasked(arm) == {}


def test_a_readout_is_held_to_its_own_distribution() -> None:
    with pytest.raises(
        RunError, match="readout of arm 'mine' is not scored by what it predicts: at position 0"
    ):
        unasked(read_out(Flattering))
    with pytest.raises(RunError, match=r"predicts no distribution: .* Return log-probabilities"):
        unasked(read_out(Logits))
    with pytest.raises(RunError, match=r"gives log-probabilities \[3, 48, 30\] .* must be \[3, 48, 29\] and"):
        unasked(read_out(OneMore))


def test_what_cannot_be_asked_is_said_and_what_cannot_run_is_refused_with_its_line() -> None:
    def refusing(passages: Any) -> Any:
        raise ValueError("too few entries")

    note = unasked(memory(Moody))["mine"]
    assert "mine was not asked whether it reads the future: position 0 says something else each time" in note
    note = unasked(Arm("mine", stored(), refusing))["mine"]
    assert "cannot be built for it (ValueError: too few entries)" in note
    assert "its network cannot be copied (TypeError: " in unasked(memory(Locked))["mine"]
    assert "it gives no finite outputs" in unasked(memory(RootedAtZero))["mine"]
    with pytest.raises(RunError, match="outputs of arm 'mine' are not finite before anything is trained"):
        unasked(memory(RootedBelowZero))
    with pytest.raises(RunError, match=r"arm 'mine' cannot read a batch.* RuntimeError: .* Correct it"):
        unasked(memory(Short))


def test_what_can_be_asked_is_asked_though_something_else_cannot() -> None:
    with pytest.raises(RunError, match="arm 'mine' reads the future"):
        unasked(memory(MoodyInTraining))


def test_arms_of_the_library_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.arm_checks.Transformer", None)
    run = Run("toy", "ngram", SAME_TOKENS, 0, 16, 1e9, {})
    assert check_arms([run], ARMS, CORPUS) == {}
