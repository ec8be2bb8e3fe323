"""A sweep while it goes on, and what came of it."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments.forecast import duration
from experiments.sweep.config import Sweep
from experiments.sweep.runner import Running
from experiments.sweep.trial import FAILED, STOPPED, Trial, ranked

SHOWN = 10
WIDEST = 24
LONGEST = 40


class Display:
    """A bar on a terminal, a line for each trial everywhere.

    Args:
        sweep: The file.
        total: Trials in all.
        done: Of them, those that had ended before.
        stream: Where to.
    """

    def __init__(self, sweep: Sweep, total: int, done: int, stream: TextIO) -> None:
        self.sweep = sweep
        self.total = total
        self.done = done
        self.console = Console(file=stream, soft_wrap=True, highlight=False)
        self._seen: dict[int, Running] = {}
        # Drawn by hand: processes are started by forking, which wants no other thread.
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", markup=False),
            console=self.console,
            auto_refresh=False,
            transient=True,
            disable=not stream.isatty(),
        )
        self._task = self._bar.add_task(sweep.name, total=total, completed=done, doing="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Running | Trial) -> None:
        """Show what happened."""
        if isinstance(event, Running):
            self._seen[event.number] = event
        else:
            self._seen.pop(event.number, None)
            self.done += 1
            style = "red" if event.state == FAILED else ""
            self.console.print(Text(f"[{self.done}/{self.total}] {said(event, self.sweep)}", style=style))
        self._bar.update(self._task, completed=self.done, doing="; ".join(map(_doing, self._seen.values())))
        self._bar.refresh()


def said(trial: Trial, sweep: Sweep) -> str:
    """One line about a trial."""
    metric = sweep.metric
    params = ", ".join(f"{_short(name)}={_value(value)}" for name, value in sweep.named(trial.params).items())
    what = f"trial {trial.number} ({params})"
    if trial.state == FAILED:
        return f"{what} failed: {trial.reason}"
    result = f"{metric.name} {trial.value:.6g}" if metric and trial.value is not None else "done"
    early = f", stopped early after {trial.steps}" if trial.state == STOPPED else ""
    return f"{what}: {result}{early} ({duration(trial.seconds)})"


def table(trials: Sequence[Trial], sweep: Sweep, width: int) -> str:
    """The best trials, as text.

    Args:
        trials: All of them.
        sweep: The file.
        width: Of the terminal.
    """
    metric = sweep.metric
    best = ranked(trials, metric)[:SHOWN]
    rows = [sweep.named(trial.params) for trial in best]
    every = [sweep.named(trial.params) for trial in trials]
    # What never varies says nothing here.
    varied = [
        name for name in (rows[0] if rows else {}) if len({json.dumps(row.get(name)) for row in every}) > 1
    ]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("trial", justify="right")
    if metric is not None:
        drawn.add_column(metric.name, justify="right", overflow="fold")
    for name in varied:
        drawn.add_column(_short(name), justify="right", overflow="fold")
    drawn.add_column("")
    for trial, row in zip(best, rows, strict=True):
        value = [] if metric is None else [f"{trial.value:.6g}"]
        note = f"stopped early after {trial.steps}" if trial.state == STOPPED else ""
        drawn.add_row(str(trial.number), *value, *(_value(row.get(name)) for name in varied), note)
    stream = io.StringIO()
    Console(file=stream, width=width).print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines() if line.strip())


def pasted(words: Sequence[str]) -> str:
    """A command line to paste into a shell."""
    return shlex.join(word for number, word in enumerate(words) if number or word != "/usr/bin/env")


def _doing(trial: Running) -> str:
    values = trial.log.values if trial.log else []
    return (
        f"trial {trial.number}: {values[-1]:.4g} after {len(values)}" if values else f"trial {trial.number}"
    )


def _short(name: str) -> str:
    """The end of a dotted name, which tells the most."""
    parts = name.split(".")
    return name if len(name) <= WIDEST else ".".join(parts[-2:])


def _value(value: Any) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
