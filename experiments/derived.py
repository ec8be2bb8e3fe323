"""Rows that need no training of their own: memory off, and mixtures with counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from experiments.controls import CountModel, CountScores, Mixture, cross_fitted_nats, recency
from experiments.controls.mixture import mixing_price
from experiments.controls.recency import N_BUCKETS, recency_price
from experiments.data import Corpus
from experiments.evaluation import Evaluation, Scored, losses_of
from experiments.revision import code_digest
from retrieval import Passages

ORDER = 5
# How names of derived arms end.
DERIVED = (" + counts", " + recency", ", memory off")


def derive(
    row: Mapping[str, Any], arm: str, regime: str, losses: Mapping[str, Any], **changes: Any
) -> dict[str, Any]:
    """A row that shares everything with ``row`` but its name, its losses and what is said to change.

    Args:
        row: The parent.
        arm: Name of the derived arm.
        regime: What its store, if any, holds.
        losses: Losses by split.
        changes: Further fields.
    """
    return {
        **row,
        "arm": arm,
        "regime": regime,
        "control": True,
        "losses": losses,
        "probes": {},
        "parent": row.get("parent") or row["run"],
        **changes,
    }


class Counts:
    """Count n-grams over one store, scored on the evaluation windows of every split; kept on disk.

    Args:
        corpus: The text evaluated on.
        passages: What was counted.
        evaluations: Held-out windows by split.
        folder: Cache.
    """

    def __init__(
        self, corpus: Corpus, passages: Passages, evaluations: Mapping[str, Evaluation], folder: Path
    ) -> None:
        shape = {name: (len(e.chosen), e.windows.length) for name, e in evaluations.items()}
        path = folder / "counts" / f"{corpus.fingerprint[:16]}-{passages.fingerprint[:16]}-{_digest(shape)}"
        code = code_digest(("experiments.controls", "experiments.data", "experiments.derived"))
        path = path.with_name(f"{path.name}-{code}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.with_suffix(".json").exists():
                self._score(passages, evaluations, path)
        self.bill: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            self.scores = {name: (arrays[f"{name}-p"], arrays[f"{name}-b"]) for name in evaluations}

    @staticmethod
    def _score(passages: Passages, evaluations: Mapping[str, Evaluation], path: Path) -> None:
        model = CountModel(passages, ORDER)
        arrays: dict[str, np.ndarray] = {}
        for name, (probability, bucket) in _of_targets(evaluations, model.score).items():
            arrays[f"{name}-p"] = probability.astype(np.float32)
            arrays[f"{name}-b"] = bucket.astype(np.int16)
        mixing_flops, mixing_bytes = mixing_price(passages.vocab_size)
        bill = {
            "build_flops": model.build_flops,
            "build_bytes": model.build_bytes,
            "read_flops": model.read_flops + mixing_flops,
            "read_bytes": model.read_bytes + mixing_bytes,
            "seconds": model.build_seconds,
            "n_buckets": model.n_buckets,
        }
        # The bill is written last and renamed: its presence says that the scores are whole.
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)
        beside = path.with_suffix(".json.new")
        beside.write_text(json.dumps(bill))
        beside.rename(path.with_suffix(".json"))

    def mixed(self, scored: Mapping[str, Scored]) -> dict[str, Scored]:
        """A network mixed with the counts; weights fitted on valid, never where they are reported."""
        return mixed(scored, self.scores, self.bill["n_buckets"])

    def row(self, parent: Mapping[str, Any], losses: Mapping[str, Scored], regime: str) -> dict[str, Any]:
        """The row of "parent + counts", whose losses are those :meth:`mixed` gives."""
        flops = {**parent["flops"], "build": parent["flops"]["build"] + self.bill["build_flops"]}
        moved = {**parent["bytes"], "build": parent["bytes"]["build"] + self.bill["build_bytes"]}
        seconds = {**parent["seconds"], "build": parent["seconds"]["build"] + self.bill["seconds"]}
        return derive(
            parent,
            f"{parent['arm']} + counts",
            regime,
            losses_of(losses),
            flops=flops,
            bytes=moved,
            seconds=seconds,
            train_flops=sum(flops.values()),
            train_bytes=sum(moved.values()),
            train_seconds=sum(seconds[name] for name in ("train", "build", "search")),
            read_flops=parent["read_flops"] + self.bill["read_flops"],
            read_bytes=parent["read_bytes"] + self.bill["read_bytes"],
            control=parent["arm"] == "dense",
        )


def with_recency(
    row: Mapping[str, Any],
    scored: Mapping[str, Scored],
    evaluations: Mapping[str, Evaluation],
    vocab_size: int,
) -> dict[str, Any]:
    """The row of "parent + recency": mixed with counts of what the same document has said before, too.

    Args:
        row: The parent, mixed with counts of other text.
        scored: Its losses.
        evaluations: Held-out windows by split.
        vocab_size: Number of tokens.
    """
    scores = _of_targets(evaluations, partial(recency, vocab_size=vocab_size))
    time = next(iter(evaluations.values())).windows.length
    prices = [sum(parts) for parts in zip(recency_price(time), mixing_price(vocab_size), strict=True)]
    return derive(
        row,
        f"{row['arm']} + recency",
        row["regime"],
        losses_of(mixed(scored, scores, N_BUCKETS)),
        read_flops=row["read_flops"] + prices[0],
        read_bytes=row["read_bytes"] + prices[1],
    )


def mixed(
    scored: Mapping[str, Scored], counts: Mapping[str, tuple[np.ndarray, np.ndarray]], n_buckets: int
) -> dict[str, Scored]:
    """Losses of a model mixed with counts; weights fitted on valid, never where they are reported.

    Args:
        scored: The model's losses by split.
        counts: For each scored target the probability that counts give it, and the bucket.
        n_buckets: How many buckets there are.
    """
    network = {name: -split.nll.astype(np.float64) for name, split in scored.items()}
    mixture = Mixture.fit(network["valid"], *counts["valid"], n_buckets, split="valid")
    found = {}
    for name, split in scored.items():
        p, bucket = counts[name]
        if name == "valid":
            # Every other target takes its weights from the rest.
            nats = cross_fitted_nats(network[name][:, None], p[:, None], bucket[:, None], n_buckets)[:, 0]
        else:
            nats = mixture.nats(network[name], p, bucket, split=name)
        found[name] = replace(split, nll=nats)
    return found


def _of_targets(
    evaluations: Mapping[str, Evaluation], score: Callable[[np.ndarray, np.ndarray, np.ndarray], CountScores]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What counts say of each scored target: its probability, and the bucket."""
    found = {}
    for name, evaluation in evaluations.items():
        batch = evaluation.windows.batch(evaluation.chosen)
        tokens, targets, documents = (batch[key].numpy() for key in ("tokens", "targets", "documents"))
        scores, kept = score(tokens, targets, documents), targets >= 0
        found[name] = scores.probability[kept], scores.bucket[kept]
    return found


def _digest(shape: Mapping[str, Any]) -> str:
    return "-".join(f"{name}{rows}x{time}" for name, (rows, time) in sorted(shape.items()))
