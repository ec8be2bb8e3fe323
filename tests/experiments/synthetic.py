"""Rows that look like the default study, from a dense surface and arms of known worth."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WIDTHS = (48, 64, 96, 128)
ARMS: dict[tuple[str, str], dict[str, Any]] = {
    ("ngram", "same tokens"): {"worth": 2.2, "read": 1.05},
    ("knn", "same tokens"): {"worth": 1.15, "read": 1.6},
    ("graph", "same tokens"): {"worth": 1.3, "read": 1.9},
    ("knn", "whole corpus"): {"worth": 4.0, "read": 1.6},
    ("graph", "whole corpus"): {"worth": 8.0, "read": 1.9},
    ("dense + counts", "same tokens"): {"worth": 1.9, "read": 1.0, "control": True, "of": "dense"},
    ("dense + counts", "whole corpus"): {"worth": 6.0, "read": 1.0, "control": True, "of": "dense"},
    ("unigram table", "same tokens"): {"worth": 1.02, "read": 1.05, "control": True},
    ("random neighbours", "same tokens"): {"worth": 0.9, "read": 1.6, "control": True},
    ("shuffled edges", "same tokens"): {"worth": 1.2, "read": 1.9, "control": True},
    ("memory off", "same tokens"): {"worth": 0.5, "read": 1.0, "control": True, "of": "ngram"},
}


def frontier_loss(flops: float) -> float:
    """Bits per byte of the best dense width, straight in log FLOPs so that interpolation is exact."""
    return 1.85 - 0.16 * math.log(flops / 1e12)


def rows(
    *,
    seeds: int = 3,
    noise: float = 0.006,
    shared: float = 0.5,
    budgets: tuple[float, ...] = (1e12, 3e12),
    dense_budgets: tuple[float, ...] = (1e12, 3e12, 1e13),
    arms: Mapping[tuple[str, str], Mapping[str, Any]] = ARMS,
    rng: int = 0,
    documents: int = 0,
) -> list[dict[str, Any]]:
    """One row a run; an arm of worth w at budget C has the loss of the dense frontier at w times C.

    With documents, rows tell the losses of so many: some are harder for everyone, arms differ a little on each.
    """
    draw = np.random.default_rng(rng)
    order = {(budget, seed): draw.standard_normal() for budget in dense_budgets for seed in range(seeds)}

    def jitter(budget: float, seed: int) -> float:
        own = draw.standard_normal()
        return noise * (math.sqrt(shared) * order[budget, seed] + math.sqrt(1 - shared) * own)

    out: list[dict[str, Any]] = []
    for budget in dense_budgets:
        best = 64 if budget < 5e12 else 96
        for width in WIDTHS:
            for seed in range(seeds):
                loss = frontier_loss(budget) + 0.08 * math.log(width / best) ** 2 + jitter(budget, seed)
                out.append(_row("dense", "none", False, seed, width, budget, loss, 2e4 * width * 3))
    for (arm, regime), spec in arms.items():
        for budget in budgets:
            for seed in range(seeds):
                parent = None
                if "of" in spec:
                    parent = next(
                        r
                        for r in out
                        if (r["arm"], r["seed"], r["budget"]) == (spec["of"], seed, budget)
                        and r["width"] == 64
                    )["run"]
                loss = frontier_loss(spec["worth"] * budget) + jitter(budget, seed)
                control = bool(spec.get("control", False))
                row = _row(arm, regime, control, seed, 64, budget, loss, 2e4 * 64 * 3 * spec["read"])
                row["parent"] = parent
                out.append(row)
    if documents:
        _tell_documents(out, documents, np.random.default_rng([rng, documents]))
    return out


def _tell_documents(rows: list[dict[str, Any]], count: int, draw: np.random.Generator) -> None:
    sizes = np.round(4000 * np.exp(draw.standard_normal(count)))
    hard = 0.4 * draw.standard_normal(count)
    tastes: dict[tuple[str, str], np.ndarray] = {}
    for row in rows:
        name = row["arm"], row["regime"]
        taste = tastes.setdefault(name, 0.05 * draw.standard_normal(count))
        off = hard + taste + 0.02 * draw.standard_normal(count)
        # The documents make up the loss that the row has already.
        rates = row["losses"]["test"]["bits_per_byte"] + off - (off * sizes).sum() / sizes.sum()
        nats = (rates * sizes * math.log(2)).round(4)
        row["losses"]["test"]["documents"] = {"nats": nats.tolist(), "bytes": sizes.tolist()}


def _row(
    arm: str, regime: str, control: bool, seed: int, width: int, budget: float, loss: float, read: float
) -> dict[str, Any]:
    retrieves = arm in ("knn", "graph", "random neighbours", "shuffled edges")
    parts = {
        "forward": 0.33,
        "backward": 0.62,
        "optimizer": 0.05 - 0.04 * retrieves,
        "search": 0.03,
        "build": 0.01,
    }
    if not retrieves:
        parts |= {"search": 0.0, "build": 0.0}
    flops = {phase: int(budget * part) for phase, part in parts.items()}
    moved = {phase: int(amount * 0.4 * (1 + 2 * retrieves)) for phase, amount in flops.items()}
    seconds = {"train": budget / 5e10, "build": 4.0 * retrieves, "search": 9.0 * retrieves, "evaluate": 6.0}
    # What only one arm spends is billed on top, so the sum is made the budget again.
    flops["forward"] += int(budget) - sum(flops.values())
    copying = {"first": 11.4, "second": 11.35} if budget < 2e12 else {"first": 11.9, "second": 8.7}
    return {
        "study": "memory_per_flop",
        "run": hashlib.sha256(repr((arm, regime, seed, width, budget)).encode()).hexdigest()[:16],
        "arm": arm,
        "regime": regime,
        "control": control,
        "seed": seed,
        "width": width,
        "layers": 3,
        "budget": budget,
        "tokens": int(budget / 6e5),
        "steps": int(budget / 6e8),
        "params": {
            "total": width * 12_000,
            "active": width * 12_000,
            "table": 1_000_000 if arm == "ngram" else 0,
        },
        "flops": flops,
        "search": {"flops": flops["search"], "intops": flops["search"] * 3 // 4} if retrieves else {},
        "train_flops": sum(flops.values()),
        "matmul_flops": int(sum(flops.values()) * 0.9),
        "bytes": moved,
        "train_bytes": sum(moved.values()),
        "read_flops": int(read),
        "read_bytes": int(read * 2),
        "seconds": seconds,
        "train_seconds": seconds["train"] + seconds["build"] + seconds["search"],
        "by_operator": {
            "aten.mm": int(budget * 0.7),
            "aten.bmm": int(budget * 0.2),
            "mnemograph.search": flops["search"],
        },
        "by_module": {"layers.0.mixer": int(budget * 0.1)},
        "losses": {
            split: {"nats_per_token": loss * 1.98, "bits_per_byte": loss + offset}
            for split, offset in (("valid", 0.01), ("test", 0.0), ("heldout", 0.3))
        },
        "probes": {"copying": copying},
        "parent": None,
        "settings": {"rate": 0.01, "trials": 5, "batch": 4},
        "git": "0123abc",
        "code": "0123abc",
        "versions": {"torch": "2.13.0", "python": "3.11"},
        "corpus": "ab" * 32,
        "started": "2025-01-01T00:00:00",
    }


def changed(row: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A copy of a row with some columns changed."""
    return {**copy.deepcopy(dict(row)), **values}
