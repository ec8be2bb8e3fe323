"""Carrying a plan out: runs in workers, their rows on the disk, their progress on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TextIO

from experiments.forecast import Forecast, duration
from experiments.progress import Board, display_for
from experiments.results import Results
from experiments.scheduler import Execute, Failed, Finished, schedule

if TYPE_CHECKING:
    from experiments.run import Run


def carry_out(
    runs: Sequence[Run],
    results: Results,
    workspace: Any,
    execute: Execute,
    *,
    workers: int,
    stream: TextIO,
    unaffordable: bool = False,
) -> list[Failed]:
    """Execute the runs that have not finished and store their rows as they come.

    Args:
        runs: The whole plan.
        results: Where rows go; open.
        workspace: Pickled, and passed on to ``execute``.
        execute: Does one run.
        workers: Processes.
        stream: Where progress is shown.
        unaffordable: Whether a run whose budget pays for no step is a result, too.

    Returns:
        The runs that were given up. Those that diverged are results, and not tried again.
    """
    pending = results.missing(runs)
    if not pending:
        return []
    failed: list[Failed] = []
    workers = min(workers, len(pending))
    board = Board(pending, len(runs) - len(pending), workers, Forecast(results.rows))
    events = schedule(pending, workspace, execute, workers=workers, logs=results.folder / "logs")
    with display_for(board, stream, results.study) as display, closing(events):
        for event in events:
            if isinstance(event, Finished):
                results.append(event.rows)
            elif isinstance(event, Failed):
                failed.append(event)
                _log(results, event)
                if event.diverged or (unaffordable and event.unaffordable):
                    results.append([_nothing(event, results.corpus, workspace)])
            display.show(event)
    return failed


def cost(runs: Sequence[Run], rows: Sequence[dict[str, Any]], workers: int) -> str:
    """What runs will cost, in a sentence.

    Args:
        runs: The runs to do.
        rows: Finished rows, which the estimate goes by.
        workers: Processes.
    """
    forecast = Forecast(rows)
    seconds = forecast.remaining([], runs, workers)
    basis = (
        f"going by {forecast.measured} finished"
        if forecast.measured
        else "a first guess, refined as runs finish"
    )
    flops = sum(run.budget for run in runs)
    processes = f"{workers} process{'es' * (workers != 1)}"
    return (
        f"{len(runs)} runs, {flops:.2g} training FLOPs, about {duration(seconds)} with {processes} ({basis})"
    )


def _nothing(event: Failed, corpus: str, workspace: Any) -> dict[str, Any]:
    """The row of a run that came to nothing: its place and why; it has neither losses nor a bill."""
    return event.run.to_dict() | {
        "run": event.run.key(corpus),
        "diverged": event.reason,
        "parent": None,
        "corpus": corpus,
        "code": getattr(workspace, "revision", "unknown"),
    }


def _log(results: Results, event: Failed) -> None:
    with (results.folder / "failures.log").open("a") as file:
        file.write(f"{event.run.label()}: {event.reason}\n{event.trace}\n")
