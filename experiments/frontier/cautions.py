"""What a reader must know before believing a comparison, read off its rows: tuning, widths, the load of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.frontier.cells import DENSE, Cell, Row, Table, budget_key
from experiments.frontier.wording import listed

# Runs that differ in nothing but the seed take the same time on a machine left alone, within a few per cent.
UNEVEN = 2.0
_TRAINED = ("forward", "backward", "optimizer")


def is_tuned(table: Table) -> bool:
    """Whether any trial chose a setting, or rows do not say."""
    return any(_trials(row) != 0 for row in _trained(table))


def cautions(table: Table) -> dict[str, str]:
    """Sentences by what they are about: ``tuning``, ``widths`` and ``seconds``, those that apply."""
    found = {"tuning": _tuning(table), "widths": _widths(table), "seconds": _seconds(table)}
    return {about: sentence for about, sentence in found.items() if sentence}


def _tuning(table: Table) -> str:
    if not is_tuned(table):
        return (
            "Settings are untuned: no trial chose batch, depth or step sizes of dense or of any arm, so dense is the "
            "best of the widths tried and no more. `mnemograph tune` searches them with as many trials for each; a "
            "study takes over what it found by `tuned=tuned(Path(...))`."
        )
    borrowed = [
        f"{name} at {budget_key(cell.budget)}"
        for name in table.names
        for cell in table.of(name)
        if not cell.derived and not cell.control and _trials(cell.runs[0]) == 0
    ]
    if not borrowed:
        return ""
    return f"Not tuned there, but run with settings found at another size or budget: {listed(borrowed)}."


def _widths(table: Table) -> str:
    """Arms run at the width that is thought best before anything is trained; dense may turn out better at another."""
    told: dict[str, str] = {}
    best: dict[str, int] = {}
    for budget in table.budgets:
        dense = table.best(DENSE, budget)
        arms = [
            cell for cell in table.cells if cell.budget == budget and not cell.derived and cell.name != DENSE
        ]
        if dense is None or not arms or dense.width in {cell.width for cell in arms}:
            continue
        key = budget_key(budget)
        best[key] = dense.width
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


def _trained(table: Table) -> Iterator[Row]:
    return (row for cell in table.cells if not cell.derived for row in cell.runs)


def _trials(row: Row) -> Any:
    return (row.get("settings") or {}).get("trials")
