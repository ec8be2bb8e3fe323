"""A store for kNN-LM: filled with the states of a trained model, and tuned on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mann.context import Context
from mann.readout.base import IGNORE
from mann.readout.knn import KNNReadout
from retrieval import Datastore, Entries

__all__ = ["Tuned", "build_datastore", "tune"]

NOTHING = float("-inf")
# No weight is chosen nearer to 0 or 1: what it was not tuned on may want the other distribution.
EDGE = 1e-4


@runtime_checkable
class LanguageModel(Protocol):
    """What a store is filled from: a :class:`~mann.Transformer`, for example."""

    readout: Any

    training: bool

    def hidden(self, context: Context) -> Tensor:
        """The state that the readout sees."""
        ...

    def train(self, mode: bool = True) -> Any:
        """To train mode, or to eval mode."""
        ...


def build_datastore(
    model: LanguageModel,
    batches: Iterable[Mapping[str, Any]],
    path: str | Path,
    *,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> Datastore:
    """Fill a store with the states of a trained model, each with the token that came next.

    A batch has ``tokens``, and may have ``targets`` (by default the next token of the row; -100 makes no entry),
    ``documents`` and ``positions`` (by which :meth:`KNNReadout.hiding` isolates them: labels that hold for the whole
    store, by default one for each row; places in a document, by default those in the row) and ``neighbors``.

    Args:
        model: The trained model; it is asked in eval mode.
        batches: What to store.
        path: Folder of the store.
        progress: Called with the number of entries so far after each batch.
        settings: Further ones of :meth:`retrieval.Datastore.build`; the metric is ``"l2"`` if nothing is said.

    Shapes:
        batches: ``tokens``, ``targets``, ``documents``, ``positions``: ``[batch, time]``
    """
    settings.setdefault("metric", "l2")
    return Datastore.build(path, _entries(model, batches), progress=progress, **settings)


def _entries(model: LanguageModel, batches: Iterable[Mapping[str, Any]]) -> Iterator[Entries]:
    rows = 0
    for batch in batches:
        tokens = batch["tokens"]
        context = Context(tokens, batch.get("documents"), batch.get("neighbors"))
        targets = batch.get("targets")
        if targets is None:
            follows = context.same_document(1).roll(-1, 1)
            targets = tokens.roll(-1, 1).masked_fill(~follows, IGNORE)
        documents, positions = batch.get("documents"), batch.get("positions")
        if documents is None:
            documents = torch.arange(rows, rows + len(tokens))[:, None].expand_as(tokens)
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        rows += len(tokens)
        kept = targets != IGNORE
        with _asked(model):
            keys = model.hidden(context)[kept]
        yield Entries(
            keys.float(), targets[kept], documents[kept.to(documents.device)], positions[kept.cpu()]
        )


@contextmanager
def _asked(model: LanguageModel) -> Iterator[None]:
    """In eval mode, without gradients."""
    before = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Args:
        temperature: Of the neighbours' softmax.
        weight: Of their distribution; on average, where it is adaptive.
        nats: Loss per token with them.
        nats_alone: The same of the vocabulary alone.
    """

    temperature: float
    weight: float
    nats: float
    nats_alone: float


@torch.no_grad()
def tune(model: LanguageModel, batches: Iterable[Mapping[str, Any]]) -> Tuned:
    r"""Set temperature and weight of a model's :class:`KNNReadout` to what is best on held-out text.

    Every batch is searched for once. The best weight at a temperature is found by bisection, because the loss is convex
    in it; the temperature on a grid about the spread of scores, which is refined, and left where the edge is better. An
    adaptive weight is left as it is, to be trained on held-out text like any other module.

    Args:
        model: Its readout is tuned.
        batches: With ``tokens`` and ``targets``, perhaps ``documents`` and ``neighbors``; text that the store does not
            hold.

    Raises:
        ValueError: If the model has another readout, or there are no targets.
    """
    readout = model.readout
    if not isinstance(readout, KNNReadout):
        raise ValueError(f"tune() is for models with a KNNReadout, this one has {type(readout).__name__}")
    parts = [_scored(model, readout, batch) for batch in batches]
    if not sum(len(part[0]) for part in parts):
        raise ValueError("there are no targets to tune on: give batches with targets that are not -100")
    nll, scores, right, mask, gates = (torch.cat(columns) for columns in zip(*parts, strict=True))
    has_any = mask.any(-1)
    adaptive = None if readout.gate is None else gates[has_any].sigmoid()
    there, shown, hit = scores[has_any], mask[has_any], (right & mask)[has_any]

    def gain(log2_temperature: float) -> tuple[float, Tensor]:
        logs = (there * 2.0**-log2_temperature).masked_fill(~shown, NOTHING)
        share = logs.masked_fill(~hit, NOTHING).logsumexp(-1) - logs.logsumexp(-1)
        excess = torch.expm1(share + nll[has_any])
        weight = _best_weight(excess) if adaptive is None else adaptive
        return float(torch.log1p(weight * excess).sum()), weight

    low, high = (there.masked_fill(~shown, fill).clone() for fill in (math.inf, NOTHING))
    spread = float((high.amax(-1) - low.amin(-1)).mean()) if len(there) else 1.0
    best = _highest(lambda at: gain(at)[0], math.log2(spread) if spread > 0 else 0.0) if len(there) else 0.0
    won, weight = gain(best)
    readout.log_temperature.fill_(best * math.log(2))
    if adaptive is None:
        readout.logit.copy_(torch.logit(weight))
    alone = float(nll.sum())
    mean = float(weight.mean()) if weight.numel() else 0.0
    return Tuned(2.0**best, mean, (alone - won) / len(nll), alone / len(nll))


def _scored(model: LanguageModel, readout: KNNReadout, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Of every target: its loss by the vocabulary, scores of neighbours, which are right, which exist, the gate."""
    context = Context(batch["tokens"], batch.get("documents"), batch.get("neighbors"))
    kept = batch["targets"] != IGNORE
    with _asked(model):
        x = model.hidden(context)
        found, answers = readout.find(x, context)
        nll = readout.softmax(x, context, batch["targets"])
        columns = (nll, found.scores, answers == batch["targets"][..., None], found.mask, readout.gates(x))
    return tuple((c.double() if c.is_floating_point() else c)[kept].cpu() for c in columns)


def _best_weight(excess: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Where the sum of log(1 + weight * excess), which is concave, is largest between 0 and 1."""
    low, high = excess.new_zeros(()), excess.new_ones(())
    for _ in range(40):
        middle = (low + high) / 2
        rises = (excess / (1 + middle * excess)).sum() > 0
        low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
    return ((low + high) / 2).clamp(EDGE, 1 - EDGE)


def _highest(value: Callable[[float], float], middle: float) -> float:
    """Where a function of one number is largest, about: a grid of powers of two, then steps that are halved."""
    best = max((middle + step for step in range(-10, 6)), key=value)
    reached, step = value(best), 0.5
    for _ in range(60):
        if step < 0.02:
            break
        beside = max((best - step, best + step), key=value)
        if (there := value(beside)) > reached:
            best, reached = beside, there
        else:
            step /= 2
    return best
