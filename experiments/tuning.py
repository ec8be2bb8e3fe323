"""Equal tuning: a coordinate search with the same number of trials, and the same steps, for every arm and size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import RunError
from experiments.frontier import budget_key
from experiments.run import Run
from mann.module import RATES

if TYPE_CHECKING:
    from experiments.results import Results
    from experiments.study import Study

# What is searched, one after the other. Step sizes go by parameter role; the tables of a memory are looked up as
# the embedding is, and their step sizes move together.
COORDINATES = ("batch", "layers", "matrix", "embedding", "head")
MOVED = {"embedding": ("embedding", "table")}
# One step of a rate, up or down.
STEP = 1.6
# Trials use a seed of their own: what they select must not have been selected on the seeds that are reported.
SEED = 1000

_Row = Mapping[str, Any]
_Place = tuple[str, str, int, float]  # arm, regime, width, budget


def tune(
    study: Study,
    results: Results,
    carry_out: Callable[[str, list[Run]], Sequence[Run]],
    rounds: int = len(COORDINATES),
) -> Iterator[list[dict[str, Any]]]:
    """Search, smaller budgets first: larger ones begin with what those found.

    Args:
        study: What is tuned: dense at each width of its frontier, every arm at the best width, at each budget.
        results: Where trials are kept. Trials that lie there but not on the way of this search do not count.
        carry_out: Runs what is missing of a list under a title, and returns the runs that diverged.
        rounds: How many, after the one that tries where to begin; one for each coordinate at most.

    Yields:
        What :func:`best` finds after each round.

    Raises:
        RunError: If the rounds are too many: a coordinate's second turn would give arms different numbers of trials.
    """
    if not 0 <= rounds <= len(COORDINATES):
        raise RunError(
            f"{rounds} rounds: give 0 to {len(COORDINATES)}, one for each of {', '.join(COORDINATES)}"
        )
    planned: set[str] = set()
    diverged: list[Run] = []

    def rows() -> list[_Row]:
        return [row for row in results.rows if row["parent"] is None and row["run"] in planned]

    for budget, number in itertools.product(study.tuning_budgets, range(rounds + 1)):
        runs = round_of(study, budget, rows(), number)
        planned |= {run.key(results.corpus) for run in runs}
        what = COORDINATES[number - 1] if number else "where to begin"
        diverged += carry_out(f"{budget_key(budget)}, round {number} of {rounds}, {what}", runs)
        yield best(rows(), diverged)


def round_of(study: Study, budget: float, rows: Sequence[_Row], number: int) -> list[Run]:
    """The trials of one round of the search at a budget, at every place that is tuned.

    Round 0 tries what was found at the nearest size with a smaller budget, in this search or, if it has none, in the
    one the study rests on; or else the study's own settings. Each later one makes a step down and a step up from the
    best trial so far, along the next of :data:`COORDINATES`. So every place has
    ``1 + 2 * number`` trials by then.

    Args:
        study: What is tuned.
        budget: Training FLOPs of a trial.
        rows: Results of the rounds before; of a trial that diverged there is none.
        number: Which round.
    """
    losses = {(_place(row), _text(row["settings"])): _loss(row) for row in rows}
    smaller = by_place(best([row for row in rows if row["budget"] < budget]))
    # An arm that this search leaves out at smaller budgets goes on from what is known about it.
    searched = {place[:2] for place in smaller}
    known = {
        place: found
        for place, found in study.tuned.items()
        if place[-1] < budget and place[:2] not in searched
    }
    study = replace(study, tuned=known | smaller)
    runs = []
    for arm, regime, width in study.tuning_places(budget):
        settings = study.settings_of(arm, regime, width, budget)
        rates: dict[str, float] = {**RATES, **settings["rates"]}
        start = {**settings, "rates": rates, "counts": False, "trials": 0}

        def loss(trial: dict[str, Any], place: _Place = (arm, regime, width, budget)) -> float:
            return losses.get((place, _text(trial)), float("inf"))

        runs += [
            Run("tuning", arm, regime, SEED, width, budget, trial) for trial in _trials(start, loss, number)
        ]
    return runs


def _trials(
    start: dict[str, Any], loss: Callable[[dict[str, Any]], float], number: int
) -> list[dict[str, Any]]:
    """The settings of a round, walking from the start again, so that rounds done later change nothing."""
    current, trials = start, [start]
    for step in range(number):
        trials = steps(current, COORDINATES[step])
        if step < number - 1:
            current = min((current, *trials), key=loss)
    return trials


def steps(settings: Mapping[str, Any], coordinate: str) -> list[dict[str, Any]]:
    """A step down and a step up along one coordinate; where there is no down, the two next steps up."""
    if coordinate in ("batch", "layers"):
        value = settings[coordinate]
        down, up = (value // 2, 2 * value) if coordinate == "batch" else (value - 1, value + 1)
        further = 4 * value if coordinate == "batch" else value + 2
        return [{**settings, coordinate: other} for other in ((down, up) if down else (up, further))]
    moved = MOVED.get(coordinate, (coordinate,))
    rates = settings["rates"]
    return [
        {**settings, "rates": {**rates, **{role: float(f"{rates[role] * by:.3g}") for role in moved}}}
        for by in (1 / STEP, STEP)
    ]


def best(rows: Sequence[_Row], diverged: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """What tuning found, by arm, regime, width and budget: the trial with the lowest validation loss.

    Args:
        rows: Finished trials.
        diverged: Trials without a loss.

    Returns:
        Per place its winner, its loss, the number of trials and the coordinates whose best value is the smallest
        or the largest that was tried, so that a better one may lie beyond.
    """
    places: dict[_Place, list[_Row]] = {}
    for row in rows:
        places.setdefault(_place(row), []).append(row)
    lost = Counter((run.arm, run.regime, run.width, run.budget) for run in diverged)
    found = []
    for place, tried in sorted(places.items()):
        winner = min(tried, key=_loss)
        edges = []
        for coordinate in COORDINATES:
            values = {_value(row, coordinate) for row in tried}
            if len(values) > 1 and _value(winner, coordinate) in (min(values), max(values)):
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
