"""What a study lacks: runs that other arms have."""

from __future__ import annotations

from experiments.frontier.cells import DENSE, Table, budget_key


def missing(table: Table) -> list[str]:
    """What other arms have and one arm lacks, in words; budgets that only dense ran are no gap.

    Controls are held against each other: a study may give them fewer budgets and seeds. What is derived from a run
    lacks what that run lacks, which is said once.
    """
    compared = [cell for cell in table.cells if cell.name != DENSE]
    budgets = sorted({cell.budget for cell in compared})
    trained = [cell for cell in table.cells if not cell.derived]
    expected = {
        control: {seed for cell in trained if cell.control == control for seed in cell.seeds}
        for control in (False, True)
    }
    controls = tuple({cell.arm for cell in trained if cell.control})
    controlled = {cell.budget for cell in trained if cell.control}
    gaps: list[str] = []
    for name in table.names:
        for budget in budgets:
            if budget not in controlled and table.of(name)[0].arm.startswith(controls):
                continue
            # Dense has all seeds at the width planned for a budget alone, whichever width turns out best.
            widths = [cell for cell in table.cells if (cell.name, cell.budget) == (name, budget)]
            cell = max(widths, key=lambda cell: len(cell.seeds), default=None)
            place = f"{name} at {budget_key(budget)}"
            if cell is None:
                gaps.append(f"{place}: not run")
            elif not cell.derived and (lacking := sorted(expected[cell.control] - set(cell.seeds))):
                without = ", ".join(map(str, lacking))
                planned = len(expected[cell.control])
                gaps.append(f"{place}: {len(cell.seeds)} of {planned} seeds (without {without})")
    if not compared:
        gaps.append("every arm but dense")
    return gaps
