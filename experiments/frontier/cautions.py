"""What a reader must know before believing a comparison, read off its rows: future, tuning, widths, load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.frontier.cells import DENSE, Cell, Row, Table, budget_key
from experiments.frontier.wording import listed

# Runs that differ in nothing but the seed take the same time on a machine left alone, within a few per cent.
UNEVEN = 2.0
_TRAINED = ("forward", "backward", "optimizer")
# Where the settings of a run came from, as its row says it in ``settings_from``.
TUNED_HERE = "own search"
OTHER_SIZE = "another size"
OTHER_ARM = "another arm"
UNTUNED = "defaults"
_NOT_TUNED = {
    OTHER_SIZE: "Not tuned there, but run with settings found at another size or budget: {}.",
    OTHER_ARM: "Not tuned apart, but run with settings found for the arm that they are like: {}.",
    UNTUNED: (
        "Not tuned at any size, but run with the settings of the study and the defaults: {}. `mnemograph tune` "
        "searches them as it does those of others."
    ),
}


def is_tuned(table: Table) -> bool:
    """Whether trials chose settings of any dense model that arms are compared with, or rows do not say."""
    return any(cell.name == DENSE for cell in _sources(table).get(TUNED_HERE, ()))


def cautions(table: Table) -> dict[str, str]:
    """Sentences by what they are about: ``future``, ``tuning``, ``widths`` and ``seconds``, those that apply."""
    found = {
        "future": _future(table),
        "tuning": _tuning(table),
        "widths": _widths(table),
        "seconds": _seconds(table),
    }
    return {about: sentence for about, sentence in found.items() if sentence}


def _future(table: Table) -> str:
    """What rows say of arms that may have read what they were to predict; older rows say nothing."""
    told = dict.fromkeys(str(why) for cell in table.cells for row in cell.runs if (why := row.get("unasked")))
    if not told:
        return ""
    return (
        f"{'. '.join(told)}. Until that is asked no result of such an arm stands, also where it is called better: it "
        "may have read what it was to predict."
    )


def _tuning(table: Table) -> str:
    sources = _sources(table)
    if set(sources) <= {UNTUNED}:
        return (
            "Settings are untuned: no trial chose batch, depth or step sizes of dense or of any arm, so dense is the "
            "best of the widths tried and no more. `mnemograph tune` searches them with as many trials for each; a "
            "study takes over what it found by `tuned=tuned(Path(...))`."
        )
    said: list[str] = []
    tuned = list(dict.fromkeys(cell.name for cell in sources.get(TUNED_HERE, ())))
    if tuned and DENSE not in tuned:
        said.append(
            f"No trial at these sizes and budgets chose settings of dense, but trials chose those of {listed(tuned)}: "
            "part of what these gain over dense may be the search alone."
        )
    for source, sentence in _NOT_TUNED.items():
        if cells := sources.get(source):
            said.append(
                sentence.format(listed([f"{cell.name} at {budget_key(cell.budget)}" for cell in cells]))
            )
    return " ".join(said)


def _sources(table: Table) -> dict[str, list[Cell]]:
    """The trained cells that are compared, by where their settings came from."""
    cells = [cell for name in table.names for cell in table.of(name) if not cell.derived and not cell.control]
    told = [_source(cell) for cell in cells]
    # Older rows say of settings without trials no more; beside some that were searched, they were found elsewhere.
    silent = OTHER_SIZE if TUNED_HERE in told else UNTUNED
    found: dict[str, list[Cell]] = {}
    for cell, source in zip(cells, told, strict=True):
        found.setdefault(source or silent, []).append(cell)
    return found


def _source(cell: Cell) -> str:
    """Where the settings of a cell came from; empty if its rows cannot tell."""
    for row in cell.runs:
        settings = row.get("settings") or {}
        if (told := row.get("settings_from")) in (TUNED_HERE, *_NOT_TUNED):
            return str(told)
        if settings.get("trials") != 0:
            return TUNED_HERE
        # Whatever a search finds has rates.
        if settings.get("rates") == {}:
            return UNTUNED
    return ""


def _widths(table: Table) -> str:
    """Arms run at the width that is thought best before anything is trained; dense may turn out better at another."""
    told: dict[str, str] = {}
    # All of them: what is left out is taken to be as at the nearest budget.
    best = {budget_key(cell.budget): cell.width for cell in table.of(DENSE)}
    for budget in table.budgets:
        dense = table.best(DENSE, budget)
        arms = [
            cell for cell in table.cells if cell.budget == budget and not cell.derived and cell.name != DENSE
        ]
        if dense is None or not arms or dense.width in {cell.width for cell in arms}:
            continue
        key = budget_key(budget)
        widths = listed([str(width) for width in sorted({cell.width for cell in arms})])
        seeds = len({seed for cell in arms for seed in cell.seeds})
        fewer = f", with {len(dense.seeds)} of {seeds} seeds" if len(dense.seeds) < seeds else ""
        told[key] = f"at {key} at {widths}, dense being best at {dense.width}{fewer}"
    if not told:
        return ""
    setting = ", ".join(f"{key}: {width}" for key, width in best.items())
    return (
        f"Arms ran at another width than the best one of dense: {'; '.join(told.values())}. To run both there, set "
        f"`best_width={{{setting}}}` in the study."
    )


def _seconds(table: Table) -> str:
    ratios = [(max(rates) / min(rates), cell) for cell in table.cells if len(rates := list(_rates(cell))) > 1]
    if not ratios:
        return ""
    ratio, cell = max(ratios, key=lambda pair: pair[0])
    if ratio <= UNEVEN:
        return ""
    return (
        f"Seconds were measured under uneven load and mean little: runs of {cell.name} at {budget_key(cell.budget)}, "
        f"width {cell.width}, that differ in nothing but the seed took up to {ratio:.1f} times as long per FLOP as one "
        "another."
    )


def _rates(cell: Cell) -> Iterator[float]:
    """Seconds of training per FLOP of it, where the rows tell both."""
    for row in () if cell.derived else cell.runs:
        seconds = _part(row, "seconds", ("train",))
        flops = _part(row, "flops", _TRAINED)
        if seconds > 0 and flops > 0:
            yield seconds / flops


def _part(row: Row, column: str, names: tuple[str, ...]) -> float:
    given: Mapping[str, Any] = row.get(column) or {}
    return float(sum(given.get(name, 0) for name in names))
