"""What a study is doing, while it does it: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.forecast import Forecast, duration
from experiments.scheduler import Advanced, Event, Failed, Finished, Retried, Started

if TYPE_CHECKING:
    from experiments.run import Run

HEARTBEAT_SECONDS = 15.0
REDRAW_SECONDS = 0.25
RECENT = 4


@dataclass
class _Task:
    run: Run
    since: float
    stage: str = "starting"
    share: float = 0.0


class Board:
    """The state of a study: what is done, what is running, what is left, how long that takes.

    Args:
        runs: The runs to do.
        done: Runs that had finished before.
        workers: How many work at once.
        forecast: Learns from every run that finishes.
        clock: The time in seconds.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        done: int,
        workers: int,
        forecast: Forecast,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = len(runs) + done
        self.done = done
        self.failed = 0
        self.begun = False
        self.workers = workers
        self.forecast = forecast
        self.running: dict[int, _Task] = {}
        self.waiting: list[Run] = list(runs)
        self.clock = clock
        self.begin = clock()

    def take(self, event: Event) -> str | None:
        """Learn what happened; the answer is a line for the log, where there is something to say."""
        match event:
            case Started(worker, run):
                self.begun = True
                self.waiting = [other for other in self.waiting if other is not run]
                self.running[worker] = _Task(run, self.clock())
            case Advanced(worker, run, stage, share):
                task = self.running.get(worker)
                if task is not None and task.run is run:
                    task.stage, task.share = stage, share
            case Finished(worker, run, rows, seconds):
                self._end(worker, run)
                self.done += 1
                self.forecast.observe(run, seconds)
                return f"{run.label()}: {_result(rows)} ({duration(seconds)})"
            case Retried(worker, run, reason):
                self._end(worker, run)
                self.waiting.insert(0, run)
                return f"{run.label()}: trying again, the process was {reason}"
            case Failed(worker, run, reason):
                self._end(worker, run)
                self.failed += 1
                return f"{run.label()} failed: {reason}"
        return None

    def headline(self) -> str:
        """One line: runs, time spent, time left."""
        now = self.clock()
        left = self.forecast.remaining(
            [(task.run, now - task.since) for task in self.running.values()], self.waiting, self.workers
        )
        measured = self.forecast.measured
        basis = f"going by {measured} finished run{'s' * (measured > 1)}" if measured else "a first guess"
        failed = f", {self.failed} failed" if self.failed else ""
        rest = f"about {duration(left)} left ({basis})" if self.waiting or self.running else "done"
        # Seconds on an idle machine, minutes on a busy one: what nobody explains looks stuck.
        starting = "" if self.begun else "; processes are starting, each loads torch and the study first"
        return (
            f"{self.done} of {self.total} runs{failed}, {duration(now - self.begin)} gone, {rest}{starting}"
        )

    def _end(self, worker: int, run: Run) -> None:
        # The worker may have begun its next run already.
        if worker in self.running and self.running[worker].run is run:
            del self.running[worker]


class Display(AbstractContextManager["Display"]):
    """Shows a board; this one in plain lines, seldom, for logs and pipes.

    Args:
        board: What to show.
        stream: Where to.
    """

    def __init__(self, board: Board, stream: TextIO) -> None:
        self.board = board
        self.stream = stream
        self._last = board.clock()

    def show(self, event: Event) -> None:
        """Show what happened."""
        line = self.board.take(event)
        if line is not None:
            self._print(f"[{self.board.done + self.board.failed}/{self.board.total}] {line}")
        elif self.board.clock() - self._last >= HEARTBEAT_SECONDS:
            doing = "; ".join(
                f"{task.run.label()}: {task.stage} {task.share:.0%}" for task in self.board.running.values()
            )
            self._print(f"{self.board.headline()}. {doing}".rstrip())

    def _print(self, line: str) -> None:
        self._last = self.board.clock()
        print(line, file=self.stream, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveDisplay(Display):
    """The same on a terminal, drawn in place: a bar, a line for each worker, the last results.

    Args:
        board: What to show.
        stream: The terminal.
        title: Stands over it.
    """

    def __init__(self, board: Board, stream: TextIO, title: str) -> None:
        super().__init__(board, stream)
        self.title = title
        self._recent: deque[str] = deque(maxlen=RECENT)
        # Drawn by hand: events come at least once a second, and a thread of its own would need locks.
        self._live = Live(
            console=Console(file=stream), get_renderable=self._drawn, auto_refresh=False, transient=True
        )

    def show(self, event: Event) -> None:
        """Show what happened."""
        line = self.board.take(event)
        if isinstance(event, Failed | Retried) and line is not None:
            # Stays on the screen, above the part that is drawn again.
            self._live.console.print(Text(line, style="red"))
        elif line is not None:
            self._recent.append(line)
        if line is not None or self.board.clock() - self._last >= REDRAW_SECONDS:
            self._last = self.board.clock()
            self._live.refresh()

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _drawn(self) -> RenderableType:
        board = self.board
        whole = Table.grid(padding=(0, 2))
        whole.add_row(
            Text(self.title, style="bold"), ProgressBar(board.total, board.done + board.failed, width=40)
        )
        workers = Table.grid(padding=(0, 2))
        for column in ("worker", "run", "stage"):
            workers.add_column(column, no_wrap=True, overflow="ellipsis")
        for number, task in sorted(board.running.items()):
            bar = ProgressBar(total=1.0, completed=task.share, width=10)
            workers.add_row(str(number), task.run.label(), task.stage, bar, f"{task.share:4.0%}")
        recent = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._recent]
        return Group(whole, Text(board.headline()), workers, *recent)


def display_for(board: Board, stream: TextIO, title: str) -> Display:
    """The display that suits the stream."""
    return LiveDisplay(board, stream, title) if stream.isatty() else Display(board, stream)


def _result(rows: Sequence[dict[str, Any]]) -> str:
    own = next((row for row in rows if row.get("parent") is None), None)
    try:
        assert own is not None
        return f"{own['losses']['test']['bits_per_byte']:.3f} bits per byte"
    except (AssertionError, KeyError, TypeError):
        return "done"
