"""Equal tuning: the same number of quasi-random trials, from ranges of the same width, for every arm and size."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import qmc

from experiments.errors import RunError
from experiments.frontier import budget_key
from experiments.frontier.checks import diverged
from experiments.run import Run
from mann.module import RATES

if TYPE_CHECKING:
    from experiments.results import Results
    from experiments.study import Study

# What is searched, all at once. Step sizes go by parameter role; the tables of a memory are looked up as the
# embedding is, and their step sizes move together.
COORDINATES = ("batch", "layers", "matrix", "embedding", "head")
LEAST = {"batch": 1, "layers": 1}
MOVED = {"embedding": ("embedding", "table")}
# How far a round goes from where it begins, to both sides, in octaves (layers: in layers); and from which of these
# rounds a later budget goes on, which begins with what an earlier one found.
REACH = (2.0, 1.5, 1.0, 0.5)
LATER = 2
# Trials of a round: a power of two, which quasi-random points want.
TRIALS = 8
# Trials use a seed of their own: what they select must not have been selected on the seeds that are reported.
SEED = 1000

_Row = Mapping[str, Any]
_Place = tuple[str, str, int, float]  # arm, regime, width, budget


def tune(
    study: Study,
    results: Results,
    carry_out: Callable[[str, list[Run]], None],
    rounds: int = len(REACH),
) -> Iterator[list[dict[str, Any]]]:
    """Search at the smallest budget compared, then outwards: the others begin with what the earlier ones found.

    Where the study rests on an earlier search, this one goes on from it.

    Each round tries :data:`TRIALS` settings around the best so far, all coordinates at once, at the same quasi-random
    points (a scrambled Sobol sequence) of a range that is as wide for every arm and size and narrower from round to
    round. A best value at the edge of a range is the middle of the next one, so no range ends a search; and as the
    points and widths are the same for all, nobody is tuned harder than another.

    Args:
        study: What is tuned: dense at each width of its frontier, every arm at the best width, at each budget.
        results: Where trials are kept. Trials that lie there but not on the way of this search do not count.
        carry_out: Runs what is missing of a list under a title.
        rounds: How many at a budget; all but the first have those of :data:`REACH` from :data:`LATER` on.

    Yields:
        What :func:`best` finds after each round.

    Raises:
        RunError: If there are not that many rounds.
    """
    if not 1 <= rounds <= len(REACH):
        raise RunError(f"{rounds} rounds: give 1 to {len(REACH)}")
    planned: set[str] = set()

    def rows(lost: bool = False) -> list[_Row]:
        here = [row for row in results.rows if row["parent"] is None and row["run"] in planned]
        return [row for row in here if diverged(row) == lost]

    for budget in study.tuning_budgets:
        numbers = range(begin := first_round(study, budget), min(begin + rounds, len(REACH)))
        for number in numbers:
            runs = round_of(study, budget, rows(), number)
            planned |= {run.key(results.corpus) for run in runs}
            title = f"{budget_key(budget)}, round {number - begin + 1} of {len(numbers)}"
            carry_out(title, runs)
            yield best(rows(), rows(lost=True))


def first_round(study: Study, budget: float) -> int:
    """Wide ranges are for the budget searched first, unless all know where to look from an earlier search."""
    return 0 if budget == study.tuning_budgets[0] and not _known(study, budget) else LATER


def _known(study: Study, budget: float) -> bool:
    """Whether the search that a study rests on had a winner at every place of a budget: one alone would be ahead."""
    return all((*place, budget) in study.tuned for place in study.tuning_places(budget))


def round_of(study: Study, budget: float, rows: Sequence[_Row], number: int) -> list[Run]:
    """The trials of one round of the search at a budget, at every place that is tuned.

    The first round at a budget begins where the search that the study rests on ended there, if it was at all of its
    places; or where the nearest size ended at the nearest budget searched before; if there is none, at a smaller budget
    of the search the study rests on; or else at the study's own settings. What it begins with is its first trial.
    Each later one begins with the best trial so far.

    Args:
        study: What is tuned.
        budget: Training FLOPs of a trial.
        rows: Results of the rounds before; of a trial that came to nothing there is none.
        number: Which round.
    """
    losses = {(_place(row), _text(row["settings"])): _loss(row) for row in rows}
    before = study.tuning_budgets[: study.tuning_budgets.index(budget)]
    earlier = by_place(best([row for row in rows if row["budget"] in before]))
    # An arm that this search has left out so far goes on from what is known about it.
    searched = {place[:2] for place in earlier}
    known = {
        place: found
        for place, found in study.tuned.items()
        if place[-1] < budget and place[:2] not in searched
    }
    here = {place: found for place, found in study.tuned.items() if place[-1] == budget}
    begin = first_round(study, budget)
    study = replace(study, tuned=known | earlier | (here if _known(study, budget) else {}))
    runs = []
    for arm, regime, width in study.tuning_places(budget):
        settings = study.settings_of(arm, regime, width, budget)
        rates: dict[str, float] = {**RATES, **settings["rates"]}
        current = {**settings, "rates": rates, "counts": False, "trials": 0}
        current |= study.definition_of(arm)
        trials = [current]
        for step in range(begin, number + 1):
            tried = trials_around(current, step)
            trials = [current, *tried[1:]] if step == begin else tried
            if step < number:
                place = arm, regime, width, budget
                current = min(
                    (current, *trials), key=lambda trial: losses.get((place, _text(trial)), float("inf"))
                )
        runs += [Run("tuning", arm, regime, SEED, width, budget, trial) for trial in trials]
    return runs


def trials_around(settings: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """The quasi-random trials of a round around some settings.

    Args:
        settings: The middle of the range.
        number: Which round.
    """
    points = qmc.Sobol(len(COORDINATES), rng=number).random(TRIALS)
    return [_moved(settings, (2 * point - 1) * REACH[number]) for point in points]


def _moved(settings: Mapping[str, Any], octaves: Sequence[float]) -> dict[str, Any]:
    by = dict(zip(COORDINATES, map(float, octaves), strict=True))
    rates = dict(settings["rates"])
    for coordinate in COORDINATES[2:]:
        for role in MOVED.get(coordinate, (coordinate,)):
            rates[role] = float(f"{rates[role] * 2 ** by[coordinate]:.3g}")
    return {
        **settings,
        "batch": max(LEAST["batch"], 2 ** round(math.log2(settings["batch"]) + by["batch"])),
        "layers": max(LEAST["layers"], round(settings["layers"] + by["layers"])),
        "rates": rates,
    }


def best(rows: Sequence[_Row], without_loss: Sequence[_Row] = ()) -> list[dict[str, Any]]:
    """What tuning found, by arm, regime, width and budget: the trial with the lowest validation loss.

    Args:
        rows: Finished trials.
        without_loss: Those of trials that diverged, or cost more than the budget.

    Returns:
        Per place its winner, its loss, the number of trials and the coordinates whose best value is the smallest
        or the largest that was tried, so that a better one may lie beyond.
    """
    places: dict[_Place, list[_Row]] = {}
    for row in rows:
        places.setdefault(_place(row), []).append(row)
    lost = Counter(map(_place, without_loss))
    found = []
    for place, tried in sorted(places.items()):
        winner = min(tried, key=_loss)
        edges = []
        for coordinate in COORDINATES:
            values = {_value(row, coordinate) for row in tried}
            chosen = _value(winner, coordinate)
            # Beyond one layer, or one window in a batch, nothing lies.
            least = coordinate in LEAST and chosen == LEAST[coordinate]
            if len(values) > 1 and chosen in (min(values), max(values)) and not least:
                edges.append(coordinate)
        found.append(
            {
                **dict(zip(("arm", "regime", "width", "budget"), place, strict=True)),
                "trials": len(tried) + lost[place],
                "bits_per_byte": _loss(winner),
                "settings": {name: winner["settings"][name] for name in ("rates", "layers", "batch")},
                "at_edge": edges,
            }
        )
    return found


def tuned(path: Path | None = None) -> dict[_Place, dict[str, Any]]:
    """Winners by arm, regime, width and budget, as :class:`~experiments.study.Study` takes them.

    Args:
        path: The ``tuned.json`` of a tuning; by default those that come with the library.

    Raises:
        RunError: If there is no such file.
    """
    if path is None:
        text = resources.files("experiments.studies").joinpath("tuned.json").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise RunError(
            f"there is no {path.absolute()}: run `mnemograph tune` on the study first, without tuned=..."
        )
    return by_place(json.loads(text))


def by_place(found: Sequence[Mapping[str, Any]]) -> dict[_Place, dict[str, Any]]:
    """What :func:`best` found, by arm, regime, width and budget."""
    return {_place(entry): {**entry["settings"], "trials": entry["trials"]} for entry in found}


def _place(row: _Row) -> _Place:
    return row["arm"], row["regime"], row["width"], row["budget"]


def _loss(row: _Row) -> float:
    return row["losses"]["valid"]["bits_per_byte"]


def _value(row: _Row, coordinate: str) -> float:
    settings = row["settings"]
    return settings[coordinate] if coordinate in settings else settings["rates"][coordinate]


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
