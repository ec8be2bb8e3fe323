"""The arms of the default comparison: one transformer, different slots."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from experiments.errors import RunError
from experiments.joined import JoinedSource, edges_of
from gnn import GraphReader, HeteroReader
from gnn.layers import HeteroAttention
from mann import (
    PEER,
    STEM,
    BigramMemory,
    CacheReadout,
    ChunkedCrossAttention,
    CompressiveMemory,
    DeltaRule,
    Engram,
    ExternalMemory,
    KNNAttention,
    LatentAttention,
    MemorySlots,
    MixtureOfExperts,
    NativeSparseAttention,
    NeuralMemory,
    NGramMemory,
    PointerReadout,
    ProductKeyMemory,
    SlidingWindowAttention,
    SuffixReadout,
    TRIMEReadout,
    UltraMem,
    ValueEmbeddingAttention,
)
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


def _ngram_values(n_layers: int, source: Source | None) -> dict[str, Any]:
    """The first of the two tables on the value path of the first block instead of before it."""
    mixer = partial(ValueEmbeddingAttention, values=NGramMemory)
    return {"mixer_at": {0: mixer}, "memory": {n_layers: NGramMemory}}


def _engram(n_layers: int, source: Source | None, **options: Any) -> dict[str, Any]:
    return {"memory": Engram.at_layers((0, n_layers), **options)}


def _bigram(n_layers: int, source: Source | None) -> dict[str, Any]:
    return {"memory": BigramMemory.at_layers(range(n_layers + 1))}


def _everywhere(n_layers: int, source: Source | None, **slots: Any) -> dict[str, Any]:
    return slots


def _last(n_layers: int, source: Source | None, *, slot: str, kind: Any, **options: Any) -> dict[str, Any]:
    """In the last block, or before it, alone."""
    return {slot: {n_layers - 1: partial(kind, **options)}}


def _retrieved(n_layers: int, source: Source | None, **reader: Any) -> dict[str, Any]:
    assert source is not None
    external = partial(ExternalMemory, source=source, **reader)
    return {"memory": {1: external}, "readout": partial(PointerReadout, source=source)}


def _pointing(n_layers: int, source: Source | None) -> dict[str, Any]:
    assert source is not None
    return {"readout": partial(PointerReadout, source=source)}


def _over_edges(n_layers: int, source: Source | None) -> dict[str, Any]:
    assert source is not None
    return _retrieved(n_layers, source, reader=partial(HeteroReader, joined=edges_of(source)))


def _retro(n_layers: int, source: Source | None) -> dict[str, Any]:
    assert source is not None
    return {"memory": {1: partial(ChunkedCrossAttention, source=source, chunk=32)}}


def _suffix(n_layers: int, source: Source | None) -> dict[str, Any]:
    assert source is not None
    return {"readout": partial(SuffixReadout, source=source)}


def _joined(n_layers: int, source: Source | None, *parts: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Several in one model; memories of one layer cannot be joined."""
    joined: dict[str, Any] = {}
    for part in parts:
        for slot, filled in part(n_layers, source).items():
            joined[slot] = joined[slot] | filled if slot in joined else filled
    return joined


def _with(*parts: Callable[..., dict[str, Any]]) -> Callable[[int, Source | None], dict[str, Any]]:
    return lambda n_layers, source: _joined(n_layers, source, *parts)


_BIGRAMS_TRIGRAMS = partial(_ngram, orders=(2, 3))
_PRODUCT_KEYS = partial(_last, slot="feedforward_at", kind=ProductKeyMemory, k=16)
_CACHE = partial(_everywhere, readout=CacheReadout)
_TRIME = partial(_everywhere, readout=TRIMEReadout)
_GRAPH = {"reader": GraphReader}
_MEAN = partial(HeteroReader, layer=partial(HeteroAttention, score="mean"))
_SHUFFLED = {"reader": partial(GraphReader, edges="shuffled")}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("dense"),
        Arm("ngram", _BIGRAMS_TRIGRAMS),
        Arm("knn", _retrieved, ContextSource),
        Arm("graph", partial(_retrieved, **_GRAPH), ContextSource),
        Arm("suffix graph", partial(_retrieved, **_GRAPH), SuffixSource, like="graph"),
        Arm("unigram table", partial(_ngram, orders=(1,), n_heads=4), control=True),
        Arm("random neighbours", _retrieved, RandomSource, control=True, like="knn"),
        Arm("shuffled edges", partial(_retrieved, **_SHUFFLED), ContextSource, control=True, like="graph"),
        # Every other mechanism, in windows of 256.
        Arm("engram", _engram, like="ngram"),
        Arm("bigram", _bigram, like="ngram"),
        Arm("ngram values", _ngram_values, like="ngram"),
        Arm("large ngram", partial(_ngram, n_rows=2**19), like="ngram"),
        Arm("product keys", _PRODUCT_KEYS, like="ngram"),
        Arm("PEER", partial(_last, slot="feedforward_at", kind=PEER), like="ngram"),
        Arm("UltraMem", partial(_last, slot="feedforward_at", kind=UltraMem, k=16), like="ngram"),
        Arm("STEM", partial(_last, slot="feedforward_at", kind=STEM, vocab_size=2**16), like="ngram"),
        Arm("mixture", partial(_everywhere, feedforward=MixtureOfExperts), like="dense"),
        Arm("window", partial(_everywhere, mixer=partial(SlidingWindowAttention, window=64)), like="dense"),
        Arm("kNN attention", partial(_last, slot="mixer_at", kind=KNNAttention, window=64), like="dense"),
        Arm("latent", partial(_everywhere, mixer=LatentAttention), like="dense"),
        Arm(
            "native sparse",
            partial(_everywhere, mixer=partial(NativeSparseAttention, window=64, selected=4)),
            like="dense",
        ),
        Arm("delta rule", partial(_last, slot="mixer_at", kind=DeltaRule, gated=True), like="dense"),
        Arm("neural memory", partial(_last, slot="memory", kind=NeuralMemory), like="dense"),
        Arm("slots", partial(_last, slot="memory", kind=MemorySlots), like="dense"),
        Arm("compressive", partial(_last, slot="memory", kind=CompressiveMemory), like="dense"),
        Arm("GNN-LM", partial(_retrieved, reader=HeteroReader), ContextSource, like="graph"),
        Arm(
            "GNN-LM, 3 rounds",
            partial(_retrieved, reader=partial(HeteroReader, n_layers=3)),
            ContextSource,
            like="graph",
        ),
        Arm("GNN-LM over edges", _over_edges, JoinedSource, like="graph"),
        # Retrieval without a graph: pointing alone, a plain mean, attention over a set.
        Arm("pointing", _pointing, ContextSource, like="knn"),
        Arm("mean of windows", partial(_retrieved, reader=_MEAN), ContextSource, like="graph"),
        Arm(
            "set of answers",
            partial(_retrieved, reader=partial(GraphReader, edges="none")),
            ContextSource,
            like="graph",
        ),
        Arm("retro", _retro, ContextSource, settings={"k": 2}, like="knn"),
        Arm("suffix counts", _suffix, SuffixSource, like="knn"),
        Arm("cache", _CACHE, like="dense"),
        Arm("TRIME", _TRIME, like="dense"),
        Arm("ngram + cache", _with(_BIGRAMS_TRIGRAMS, _CACHE), like="ngram"),
        Arm("ngram + TRIME", _with(_BIGRAMS_TRIGRAMS, _TRIME), like="ngram"),
        Arm("ngram + product keys", _with(_BIGRAMS_TRIGRAMS, _PRODUCT_KEYS), like="ngram"),
        Arm("ngram + knn", _with(_BIGRAMS_TRIGRAMS, _retrieved), ContextSource, like="knn"),
        Arm("product keys + knn", _with(_PRODUCT_KEYS, _retrieved), ContextSource, like="knn"),
        Arm(
            "ngram + product keys + knn",
            _with(_BIGRAMS_TRIGRAMS, _PRODUCT_KEYS, _retrieved),
            ContextSource,
            like="knn",
        ),
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
