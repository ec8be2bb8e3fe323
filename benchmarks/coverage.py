"""Do the intervals of a comparison cover? Studies simulated with known multipliers, put through the real summary.

    python benchmarks/coverage.py --json docs/results/coverage.json

A world has a dense surface, arms whose loss is that of the tuned dense frontier at ``worth`` times their budget, and
noise: from seed to seed (partly shared by arms, which see one order of data), from document to document (sizes are
log-normal, some documents are harder for everyone), between arm and document, and between seed and document. Every
study draws all of it anew, documents included. Told are how often the 95 % interval of a multiplier holds the true
one, how often that of a paired difference from dense does, how often arms are called better or worse after correction
(the equal one should not be), and the mean error of the logarithm of the multiplier.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.frontier import budget_key, summarize
from experiments.frontier.decisions import training_decision

WIDTHS = (48, 64, 96, 128)
# Of one study: enough for an end of an interval to move little against the noise of the study itself.
DRAWS = 1000
Summarize = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
quick: Summarize = partial(summarize, draws=DRAWS)


@dataclass(frozen=True)
class World:
    """What a study is drawn from; spreads are standard deviations in bits per byte.

    Args:
        seeds: runs of every cell.
        documents: of the test text; 0: rows tell none, and none differ.
        size_sd: of the logarithm of a document's bytes.
        document_sd: how documents differ in difficulty, for every arm alike.
        arm_sd: how arms differ on a document.
        place_sd: how budgets of one arm differ on a document besides.
        seed_sd: of one run, on all documents alike.
        shared: part of that variance that arms of one budget and seed have in common.
        seed_document_sd: of one run on one document.
        restless: how many times as far seeds move an arm, where not once.
        dense_budgets: of the frontier.
        budgets: of the arms.
        worth: what an arm's FLOPs are worth in dense FLOPs.
        widths: of dense; with one, nothing is selected, and it is the best.
        valid_sd: how validation and test disagree on one run; what seeds do to it, they do to both.
        oracle: tell the true loss as validation loss, so that the best width is selected without luck.
        floor, scale, exponent: of the frontier's power law, at 1e12 FLOPs.
    """

    seeds: int = 3
    documents: int = 100
    size_sd: float = 1.0
    document_sd: float = 0.4
    arm_sd: float = 0.05
    place_sd: float = 0.02
    seed_sd: float = 0.008
    shared: float = 0.3
    seed_document_sd: float = 0.03
    restless: Mapping[str, float] = field(default_factory=dict)
    dense_budgets: tuple[float, ...] = (3e11, 1e12, 3e12, 1e13)
    budgets: tuple[float, ...] = (1e12, 3e12)
    worth: Mapping[str, float] = field(default_factory=lambda: {"equal": 1.0, "little": 1.2, "much": 2.7})
    widths: tuple[int, ...] = (64,)
    valid_sd: float = 0.004
    oracle: bool = False
    floor: float = 0.9
    scale: float = 0.78
    exponent: float = 0.35

    def loss(self, flops: float, width: int = 0) -> float:
        """Bits per byte of dense in the population, at its best width unless told another."""
        best = 64 * (flops / 2e12) ** 0.25
        off = math.log(width / best) if width else 0.0
        return self.floor + self.scale * (flops / 1e12) ** -self.exponent + 0.08 * off**2

    def rows(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """One study."""
        count = max(1, self.documents)
        told = self.documents > 0
        sizes = np.maximum(64, np.round(4000 * np.exp(self.size_sd * rng.standard_normal(count))))
        hard = self.document_sd * rng.standard_normal(count) * told
        order = {
            (budget, seed): rng.standard_normal()
            for budget in self.dense_budgets
            for seed in range(self.seeds)
        }

        def runs(
            arm: str, width: int, budget: float, loss: float, taste: np.ndarray
        ) -> Iterator[dict[str, Any]]:
            place = self.place_sd * rng.standard_normal(count) * told
            for seed in range(self.seeds):
                common = math.sqrt(self.shared) * order[budget, seed]
                moved = (
                    self.restless.get(arm, 1.0)
                    * self.seed_sd
                    * (common + math.sqrt(1 - self.shared) * rng.standard_normal())
                )
                own = self.seed_document_sd * rng.standard_normal(count) * told
                rates = loss + hard + taste + place + moved + own
                seen = moved + self.valid_sd * rng.standard_normal()
                valid = loss + (0.0 if self.oracle else seen)
                yield _row(arm, width, budget, seed, rates, sizes, valid, told)

        taste = self.arm_sd * rng.standard_normal(count) * told
        rows = [
            row
            for budget in self.dense_budgets
            for width in self.widths
            for row in runs(
                "dense", width, budget, self.loss(budget, width if len(self.widths) > 1 else 0), taste
            )
        ]
        for arm, worth in self.worth.items():
            taste = self.arm_sd * rng.standard_normal(count) * told
            for budget in self.budgets:
                rows += runs(arm, 64, budget, self.loss(worth * budget), taste)
        return rows


def _row(
    arm: str,
    width: int,
    budget: float,
    seed: int,
    rates: np.ndarray,
    sizes: np.ndarray,
    valid: float,
    told: bool,
) -> dict[str, Any]:
    nats = rates * sizes * math.log(2)
    losses: dict[str, Any] = {
        "valid": {"bits_per_byte": valid},
        "test": {"bits_per_byte": float((rates * sizes).sum() / sizes.sum())},
    }
    if told:
        losses["test"]["documents"] = {"nats": nats.tolist(), "bytes": sizes.tolist()}
    return {
        "study": "coverage", "run": f"{arm} {width} {budget} {seed}", "arm": arm,
        "regime": "none" if arm == "dense" else "same tokens", "control": False, "parent": None,
        "seed": seed, "width": width, "budget": budget, "losses": losses, "corpus": "simulated", "code": "",
        "train_flops": budget, "matmul_flops": 0.9 * budget, "read_flops": 1e4 * width,
        "train_seconds": 0, "train_bytes": 0,  # not asked about
    }  # fmt: skip


def simulate(
    world: World,
    repeats: int,
    seed: int = 0,
    summarize: Summarize = quick,
) -> dict[str, Any]:
    """Draw studies and count.

    Args:
        world: what they are drawn from.
        repeats: how many.
        seed: of all of them.
        summarize: from rows to a summary.

    Returns:
        By arm, as parts of the studies: ``covered`` and ``pairs`` (by budget: the interval of the multiplier, and of
        the difference from dense, hold the true one) and ``called`` (better or worse, at any budget); ``bias``, the
        mean error of the logarithm of the multiplier; and ``power_law``, how often the frontier was read as one.
    """
    rng = np.random.default_rng(seed)
    keys = {budget_key(budget): budget for budget in world.budgets}
    covered = {arm: dict.fromkeys(keys, 0) for arm in world.worth}
    pairs = {arm: dict.fromkeys(keys, 0) for arm in world.worth}
    called = dict.fromkeys(world.worth, 0)
    errors: dict[str, list[float]] = {arm: [] for arm in world.worth}
    power_law = 0
    for _ in range(repeats):
        summary = summarize(world.rows(rng))
        power_law += summary["frontier_fit"]["method"] == "power law"
        for arm, worth in world.worth.items():
            entries = {key: summary["arms"][arm][key] for key in keys}
            for key, entry in entries.items():
                covered[arm][key] += _holds(entry["train_flops"], worth)
                if entry["train_flops"]["beyond"] != "point":
                    errors[arm].append(math.log(entry["train_flops"]["multiplier"] / worth))
            called[arm] += any(training_decision(entry) in ("better", "worse") for entry in entries.values())
        for pair in summary["pairs"]:
            if pair["against"] == "dense" and pair["budget"] in keys:
                budget, arm = keys[pair["budget"]], pair["arm"]
                difference = world.loss(budget) - world.loss(world.worth[arm] * budget)
                pairs[arm][pair["budget"]] += pair["low"] <= difference <= pair["high"]
    return {
        "repeats": repeats,
        "covered": {arm: _parts(counts, repeats) for arm, counts in covered.items()},
        "pairs": {arm: _parts(counts, repeats) for arm, counts in pairs.items()},
        "called": _parts(called, repeats),
        "bias": {arm: float(np.mean(each)) for arm, each in errors.items() if each},
        "power_law": power_law / repeats,
    }


def _parts(counts: Mapping[str, int], repeats: int) -> dict[str, float]:
    return {key: count / repeats for key, count in counts.items()}


def _holds(found: Mapping[str, Any], worth: float) -> bool:
    """Whether an interval holds the true multiplier; an open end holds everything on its side."""
    low, high = found["low"], found["high"]
    return (low is None or low <= worth) and (high is None or worth <= high)


def mean_coverage(covered: Mapping[str, Mapping[str, float]]) -> float:
    """Over all arms and budgets."""
    return float(np.mean([part for parts in covered.values() for part in parts.values()]))


def worlds() -> Iterator[tuple[str, World]]:
    """What is simulated by default: spreads as measured on code at 1e11 to 3e12 FLOPs, then harder cases."""
    for seeds in (2, 3, 5):
        yield f"{seeds} seeds, 100 documents", World(seeds=seeds)
        yield f"{seeds} seeds, documents not told", World(seeds=seeds, documents=0)
    yield "3 seeds, nothing shared by a seed", World(shared=0.0)
    yield "3 seeds, 30 documents", World(documents=30)
    yield "3 seeds, an arm 2.5 times as restless", World(restless={"equal": 2.5})
    yield "3 seeds, 3 dense budgets (interpolation)", World(dense_budgets=(1e12, 3e12, 1e13))
    yield "3 seeds, best of 4 widths by validation", World(widths=WIDTHS)
    yield "3 seeds, best of 4 widths known", World(widths=WIDTHS, oracle=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=300, help="studies of each world (default 300)")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    heads = "multiplier", "difference", "equal called", "1.2x called", "2.7x called", "bias of log"
    print(f"{'':42}" + "".join(f"{head:>14}" for head in heads))
    for name, world in worlds():
        result = simulate(world, arguments.repeats)
        numbers = [
            mean_coverage(result["covered"]),
            mean_coverage(result["pairs"]),
            *result["called"].values(),
        ]
        told = "".join(f"{100 * number:13.1f}%" for number in numbers)
        print(f"{name:42}{told}{np.mean(list(result['bias'].values())):+14.3f}", flush=True)
        found.append({"world": name, **asdict(world), **result})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
