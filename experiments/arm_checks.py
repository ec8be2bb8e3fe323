"""What every arm of your own must keep to, found out on one small batch before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
ROWS = 3
STORED = 64
# How far parameters are moved, and how far those that are zero: closed gates and a head of zeros would hide what comes
# through them. The next pair is tried where the outputs of the one before are not finite.
MOVES = ((0.3, 0.3), (0.03, 0.3), (0.003, 0.3), (0.003, 0.03))
# Sums in another order are no news of the future.
TOLERANCE = 1e-4
# Nats between a loss and the distribution it is of: what rounding leaves, and too little to win by.
ROUNDING = 1e-3
# What a position may hear of, by its name in a batch.
_PARTS = {"tokens": "tokens", "targets": "targets", "documents": "documents", "neighbors": "neighbours"}
_AGAIN = "then give the same command again"
_Outputs = tuple[Tensor, Tensor]
_Batch = dict[str, Any]


def check_arms(runs: Sequence[Run], arms: Mapping[str, Arm], corpus: Corpus) -> dict[str, str]:
    """Refuse an arm that reads the future, mixes the rows of a batch, or is scored by losses not of its distribution.

    What an arm says at a position must stay the same with other tokens, targets, documents and neighbours at later
    positions and in other rows, in train mode and in eval mode. In eval mode, in which arms are scored, its
    probabilities must sum to one and its losses be those of the targets among them.

    Arms of the library are left out: the tests of the house ask them. One small batch of the training text an arm, at
    the sizes of its smallest run.

    Args:
        runs: What is planned.
        arms: By name.
        corpus: What they would train on.

    Returns:
        By the name of an arm that could not be asked, a sentence that says why.

    Raises:
        RunError: Naming the arm, what it does at which position, and what to do.
    """
    unasked: dict[str, str] = {}
    for run in {run.arm: run for run in sorted(runs, key=lambda run: -run.width)}.values():
        arm = arm_named(run.arm, arms)
        if ARMS.get(run.arm) is not arm and (why := _Asked(run, arm, corpus).why_not()):
            unasked[arm.name] = f"{arm.name} was not asked whether it reads the future: {why}"
    return unasked


class _Asked:
    def __init__(self, run: Run, arm: Arm, corpus: Corpus) -> None:
        self.arm = arm
        self.run = run
        self.corpus = corpus
        self.settings: dict[str, Any] = DEFAULTS | dict(arm.settings) | dict(run.settings)
        self.windows = Windows(corpus.train, self.settings["time"])
        self.order = training_order(len(self.windows), run.seed)
        whole = self.windows.batch(self.order[:ROWS])
        self.batch: _Batch = {name: whole[name] for name in ("tokens", "targets", "documents")}
        self.source: Source | None = None

    def why_not(self) -> str:
        """Ask the arm; what stood in the way, if anything did."""
        try:
            self.source = self._store()
        except Exception as error:  # a store of few tokens may be refused where that of a run is not
            return f"a store of {STORED} windows cannot be built for it ({told(error)})"
        self.batch["neighbors"] = self._found(self.batch)
        torch.manual_seed(self.run.seed)
        size = self.corpus.vocab_size, self.run.width, self.settings["layers"], self.settings["heads"]
        try:
            network = Transformer(*size, **self.arm.slots(self.settings["layers"], self.source))
            for training in (True, False):  # what is made at the first use is moved too
                self._check_outputs(self._outputs(network.train(training), self.batch, copied=False))
            try:
                self._copy(network)
            except Exception as error:
                return f"its network cannot be copied ({told(error)})"
            # Both, whatever stands in the way of one: what can be asked may be wrong.
            return next(filter(None, [self._ask(network, training) for training in (True, False)]), "")
        except RunError:
            raise
        except Exception as error:
            line = own_line(error)
            raise RunError(
                f"arm {self.arm.name!r} cannot read a batch{f' ({line})' if line else ''}: {told(error)}. Correct it, "
                f"{_AGAIN}"
            ) from error

    def _store(self) -> Source | None:
        if self.arm.source is None:
            return None
        return self.arm.source(self.windows.passages(self.order[-STORED:], self.corpus.vocab_size))

    def _found(self, batch: _Batch) -> Neighbors | None:
        if self.source is None:
            return None
        return self.source.search(batch["tokens"], self.settings["k"], documents=batch["documents"])

    def _ask(self, pristine: Transformer, training: bool) -> str:
        """Compare what the arm says of texts that differ in part; why it could not be asked, if so."""
        moved = self._moved(pristine.train(training))
        if moved is None:
            return (
                f"with its parameters moved by {MOVES[-1][0]}, and those that are zero by {MOVES[-1][1]}, it gives no "
                "finite outputs"
            )
        network, before = moved
        tokens = self.batch["tokens"]
        rows, time = tokens.shape
        again = self._outputs(network, self.batch)
        if (heard := _heard(before, again, torch.ones_like(tokens, dtype=torch.bool))) is not None:
            return (
                f"position {heard[1]} says something else each time it reads the same (random numbers that torch does "
                "not draw cannot be repeated)"
            )
        if not training:
            self._check_losses(*before)
        # At the first positions, within and at the end of blocks, and at the last one.
        for cut in sorted({cut for cut in (1, 2, 31, 64, time // 2 + 1, time - 1) if 0 < cut < time}):
            late = (torch.arange(time) >= cut).expand(rows, time)
            if (found := self._differs(network, before, late)) is not None:
                what, _, then = found
                raise RunError(
                    f"arm {self.arm.name!r} reads the future: with other {what} from position {cut} on, {then}. Make "
                    "its output at a position depend on that position and earlier ones alone (no flip, mean or "
                    "normalisation over time; a convolution padded on the left; nothing of where a document ends), "
                    f"{_AGAIN}"
                )
        for row in range(rows):
            inside = (torch.arange(rows) == row)[:, None].expand(rows, time)
            if (found := self._differs(network, before, inside)) is not None:
                what, other, then = found
                raise RunError(
                    f"arm {self.arm.name!r} mixes the rows of a batch: with other {what} in row {row}, {then} in row "
                    f"{other}. Rows are windows by themselves, and another one may hold what comes next: keep the "
                    "first dimension apart (batch_first=True; no attention, mean or normalisation over it), "
                    f"{_AGAIN}"
                )
        return ""

    def _differs(self, network: Transformer, before: _Outputs, mask: Tensor) -> tuple[str, int, str] | None:
        """With other text where ``mask`` says: other what, in which row elsewhere something changes, and what does."""
        other = _other(self.batch, mask, self.corpus.vocab_size)
        if (heard := _heard(before, self._outputs(network, other), ~mask)) is not None:
            row, position = heard
            what = "text"
            for name, words in _PARTS.items():  # which of them it is
                after = self._outputs(network, self.batch | {name: other[name]})
                if (alone := _heard(before, after, ~mask)) is not None:
                    what, (row, position) = words, alone
                    break
            return what, row, f"position {position} says something else"
        old, new = self.batch["neighbors"], self._found(other)
        if old is not None and new is not None:
            moved = (old.ids != new.ids).any(-1) & ~mask
            if moved.any():
                row, position = _first(moved)
                return "text", row, f"its source finds other neighbours at position {position}"
        return None

    def _moved(self, pristine: Transformer) -> tuple[Transformer, _Outputs] | None:
        """A copy with its parameters moved, as far as its outputs stay finite, and those."""
        for far, far_from_zero in MOVES:
            network = self._copy(pristine)
            _move(network, far, far_from_zero)
            try:
                before = self._outputs(network, self.batch)
            except Exception:  # some refuse what is no number; unmoved it has read the batch
                continue
            if _finite(*before):
                return network, before
        return None

    def _copy(self, network: Transformer) -> Transformer:
        """With whatever it keeps of what it has read; stores are shared, for reading does not change them."""
        held = (value for module in network.modules() for value in vars(module).values())
        stores = [store for store in (self.source, *held) if isinstance(store, Source)]
        return copy.deepcopy(network, {id(store): store for store in stores})

    def _outputs(self, network: Transformer, batch: _Batch, *, copied: bool = True) -> _Outputs:
        """Log-probabilities and losses, from the same state and by the same random numbers each time."""
        context = {name: batch[name] for name in ("documents", "neighbors")}
        found: list[Tensor] = []
        for with_targets in (False, True):
            asked = self._copy(network) if copied else network
            torch.manual_seed(self.run.seed)
            with torch.no_grad():
                if with_targets:
                    found.append(asked.loss(batch["tokens"], batch["targets"], **context))
                else:
                    found.append(asked(batch["tokens"], **context))
        return found[0], found[1]

    def _check_outputs(self, outputs: _Outputs) -> None:
        """Refuse what has another shape, or is not finite although nothing has been trained or moved."""
        shape = tuple(self.batch["tokens"].shape)
        wanted = [(*shape, self.corpus.vocab_size), shape]
        if (given := [tuple(output.shape) for output in outputs]) != wanted:
            raise RunError(
                f"the readout of arm {self.arm.name!r} gives log-probabilities {list(given[0])} and with targets "
                f"losses {list(given[1])}, which must be {list(wanted[0])} and {list(wanted[1])}. Correct it, {_AGAIN}"
            )
        if not _finite(*outputs):
            raise RunError(
                f"the outputs of arm {self.arm.name!r} are not finite before anything is trained. Correct the values "
                f"that its parameters begin with, {_AGAIN}"
            )

    def _check_losses(self, log_probabilities: Tensor, losses: Tensor) -> None:
        """Refuse probabilities that do not sum to one, and losses that are not those of the targets."""
        sums = log_probabilities.double().exp().sum(-1)
        if (wrong := (sums - 1).abs() > ROUNDING).any():
            place = _first(wrong)
            raise RunError(
                f"the readout of arm {self.arm.name!r} predicts no distribution: at position {place[1]} the "
                f"probabilities of the next token sum to {float(sums[place]):.4g}. Return log-probabilities, such as "
                f"log_softmax of the logits, {_AGAIN}"
            )
        targets = self.batch["targets"]
        due = -log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        close = torch.isclose(losses.double(), due.double(), rtol=ROUNDING, atol=ROUNDING)
        if (wrong := ~close & (targets >= 0)).any():
            place = _first(wrong)
            raise RunError(
                f"the readout of arm {self.arm.name!r} is not scored by what it predicts: at position {place[1]} the "
                f"loss in eval mode is {float(losses[place]):.4g} nats, but -log p of the target is "
                f"{float(due[place]):.4g}. With targets return the negative log-probability of each and nothing else "
                f"(further terms in train mode alone), {_AGAIN}"
            )


def _first(places: Tensor) -> tuple[int, int]:
    """Row and position of the first of some places, by position."""
    position = int(places.any(0).nonzero()[0])
    return int(places[:, position].nonzero()[0]), position


def _heard(before: _Outputs, after: _Outputs, kept: Tensor) -> tuple[int, int] | None:
    """Row and position of the first place among those kept at which two outputs differ."""
    for one, other in zip(before, after, strict=True):
        close = torch.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)
        heard = ~close.reshape(*kept.shape, -1).all(-1) & kept
        if heard.any():
            return _first(heard)
    return None


def _finite(log_probabilities: Tensor, losses: Tensor) -> bool:
    """A probability may be zero, but not that of a target."""
    return bool((log_probabilities < torch.inf).all() and losses.isfinite().all())


def _move(network: Transformer, far: float, far_from_zero: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                step = torch.where(parameter == 0, far_from_zero * noise, far * noise)
                parameter.add_(step.to(parameter.dtype))


def _other(batch: _Batch, mask: Tensor, vocab_size: int) -> _Batch:
    """The batch with other text where ``mask`` says, a document begun or continued at the first place of each row."""
    tokens, targets, found = batch["tokens"], batch["targets"], batch["neighbors"]
    other = torch.where(mask & (tokens > 0), 1 + tokens % (vocab_size - 1), tokens)
    # The first column begins no document: its label says which one it is in.
    first = (mask & (torch.arange(mask.shape[1]) > 0)).int().argmax(1, keepdim=True)
    begun = torch.where(tokens.gather(1, first) == 0, 1, 0)
    other = torch.where(mask, other.scatter(1, first, begun), other)
    begins = other == 0
    begins[:, 0] = False
    near = found
    if found is not None:  # those of the position before
        parts = (found.scores, found.ids, found.mask)
        scores, ids, there = (torch.where(mask[..., None], part.roll(1, 1), part) for part in parts)
        near = Neighbors(scores, ids, there)
    return {
        "tokens": other,
        "targets": torch.where(mask & (targets >= 0), 1 + targets % (vocab_size - 1), targets),
        "documents": begins.cumsum(1) + batch["documents"][:, :1],
        "neighbors": near,
    }
