"""The arms of the default comparison: one transformer, different slots."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from experiments.errors import RunError
from gnn import GraphReader
from mann import ExternalMemory, NGramMemory, PointerReadout
from retrieval import ContextSource, Passages, RandomSource, Source, SuffixSource

NO_STORE, SAME_TOKENS, WHOLE_CORPUS = "none", "same tokens", "whole corpus"


def _default_slots(n_layers: int, source: Source | None) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Arm:
    """One way to fill the slots of the transformer.

    Args:
        name: How tables call it.
        slots: ``slots(n_layers, source)`` -> keyword arguments of :class:`mann.Transformer`; ``source`` is ``None``
            for arms without a store.
        source: ``source(passages)`` -> where neighbours come from; ``None``: nothing is retrieved.
        control: True if the arm is there to explain another one rather than to win.
        settings: What this arm wants, over :data:`experiments.run.DEFAULTS`.
        like: Name of the arm whose tuning this one takes over where it has none of its own. A control that is like
            another arm is not tuned by itself: it should differ from what it explains in one thing only.
    """

    name: str
    slots: Callable[[int, Source | None], dict[str, Any]] = _default_slots
    source: Callable[[Passages], Source] | None = None
    control: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""


def _ngram(n_layers: int, source: Source | None, **options: Any) -> dict[str, Any]:
    table = partial(NGramMemory, **options)
    return {"memory": {0: table, n_layers: table}}


def _retrieved(n_layers: int, source: Source | None, **reader: Any) -> dict[str, Any]:
    assert source is not None
    external = partial(ExternalMemory, source=source, **reader)
    return {"memory": {1: external}, "readout": partial(PointerReadout, source=source)}


_GRAPH = {"reader": GraphReader}
_SHUFFLED = {"reader": partial(GraphReader, edges="shuffled")}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("dense"),
        Arm("ngram", partial(_ngram, orders=(2, 3))),
        Arm("knn", _retrieved, ContextSource),
        Arm("graph", partial(_retrieved, **_GRAPH), ContextSource),
        Arm("suffix graph", partial(_retrieved, **_GRAPH), SuffixSource, like="graph"),
        Arm("unigram table", partial(_ngram, orders=(1,), n_heads=4), control=True),
        Arm("random neighbours", _retrieved, RandomSource, control=True, like="knn"),
        Arm("shuffled edges", partial(_retrieved, **_SHUFFLED), ContextSource, control=True, like="graph"),
    )
}


def arm_named(name: str, arms: Mapping[str, Arm] = ARMS) -> Arm:
    """The arm of that name.

    Raises:
        RunError: If there is none; the message lists the nearest names.
    """
    if name in arms:
        return arms[name]
    close = difflib.get_close_matches(name, arms, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise RunError(f"unknown arm {name!r}: {hint}The arms are {', '.join(arms)}")
