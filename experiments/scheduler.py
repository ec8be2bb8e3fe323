"""Runs spread over worker processes: one that dies costs its run, not the study.

Imports nothing heavy: every worker begins here, and only then loads torch.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import RunError, UnaffordableError

if TYPE_CHECKING:
    from experiments.run import Run

Execute = Callable[..., list[dict[str, Any]]]
"""``execute(run, workspace, progress)`` -> rows, as :func:`experiments.run.execute`; importable by name."""

ATTEMPTS = 2
GRACE_SECONDS = 3.0
REPORT_SECONDS = 0.2
TICK_SECONDS = 1.0
# The workers are the parallelism; more threads than cores would only wait for each other.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Started:
    """A worker takes a run."""

    worker: int
    run: Run


@dataclass(frozen=True)
class Advanced:
    """A run gets on: the share of a stage that is done."""

    worker: int
    run: Run
    stage: str
    share: float


@dataclass(frozen=True)
class Finished:
    """A run is done; its rows are not yet stored."""

    worker: int
    run: Run
    rows: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Retried:
    """A worker died; its run will be tried again."""

    worker: int
    run: Run
    reason: str


@dataclass(frozen=True)
class Failed:
    """A run is given up: what went wrong in one line, and where."""

    worker: int
    run: Run
    reason: str
    trace: str = ""

    @property
    def diverged(self) -> bool:
        """Whether its loss ceased to be a number: to try again would end alike."""
        return "FloatingPointError" in self.trace

    @property
    def unaffordable(self) -> bool:
        """Whether its budget paid for no step."""
        return UnaffordableError.__name__ in self.trace


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a second."""


Event = Started | Advanced | Finished | Retried | Failed | Tick


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def schedule(
    runs: Sequence[Run], workspace: Any, execute: Execute, *, workers: int, logs: Path
) -> Generator[Event, None, None]:
    """Execute runs in worker processes, in order, and say what happens.

    Close the iterator (``contextlib.closing``) to stop: workers end at once.

    Args:
        runs: What to do, the most important first.
        workspace: Pickled, and passed on to ``execute``.
        execute: Does one run.
        workers: Processes; each takes one run after the other and computes with one thread.
        logs: Folder for what the workers print.

    Raises:
        RunError: If workers die before they take a run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    job = pickle.dumps((execute, workspace))
    waiting = deque(runs)
    deaths: Counter[int] = Counter()
    stillborn = 0
    staff: dict[int, _Worker] = {}
    try:
        while waiting or any(worker.run is not None for worker in staff.values()):
            for number in range(1, workers + 1):
                if number not in staff and len(waiting) > sum(not worker.ready for worker in staff.values()):
                    staff[number] = _Worker(number, job, logs)
            heard = wait([handle for worker in staff.values() for handle in worker.handles], TICK_SECONDS)
            if not heard:
                yield Tick()
            for worker in [worker for worker in staff.values() if {*worker.handles} & {*heard}]:
                events: list[Event] = []
                for kind, *content in worker.heard():
                    run = worker.run
                    if kind == "advanced" and run is not None:
                        events.append(Advanced(worker.number, run, *content))
                        continue
                    if kind == "finished" and run is not None:
                        rows, seconds = content
                        events.append(Finished(worker.number, run, json.loads(rows), seconds))
                    elif kind == "failed" and run is not None:
                        events.append(Failed(worker.number, run, *content))
                    elif kind == "ready":
                        stillborn = 0
                    if waiting:  # before anybody reacts to the events: the worker should not wait
                        events.append(Started(worker.number, worker.take(waiting.popleft())))
                    else:
                        worker.dismiss()
                yield from events
                if worker.dead:
                    run, reason = worker.run, worker.bury()
                    del staff[worker.number]
                    if run is None:
                        stillborn += not worker.ready
                        if stillborn > workers:
                            raise RunError(f"workers end as they start ({reason}): {worker.log} says why")
                        continue
                    deaths[id(run)] += 1
                    if deaths[id(run)] < ATTEMPTS:
                        waiting.appendleft(run)
                        yield Retried(worker.number, run, reason)
                    else:
                        yield Failed(worker.number, run, f"its process died twice: {reason}", str(worker.log))
    finally:
        _stop(list(staff.values()))


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, number: int, job: bytes, logs: Path) -> None:
        self.number = number
        self.log = logs / f"worker-{number}.log"
        self.ready = False
        self.dead = False
        self.run: Run | None = None
        self._dismissed = False
        # A pipe each, no shared queue: a process killed while it holds a queue's lock would silence all others.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, job, str(self.log)), name=f"mnemograph-{number}", daemon=True
        )
        with _inherited():
            self.process.start()
        theirs.close()

    @property
    def handles(self) -> tuple[Any, ...]:
        return (self._connection, self.process.sentinel)

    def heard(self) -> Iterator[tuple[Any, ...]]:
        """What the worker has said; notices when there will be no more."""
        ended = not self.process.is_alive()
        try:
            while self._connection.poll():
                message = self._connection.recv()
                if message[0] == "ready":
                    self.ready = True
                yield message
        except (EOFError, OSError):
            ended = True
        self.dead = ended

    def take(self, run: Run) -> Run:
        self.run = run
        self._send(run)
        return run

    def dismiss(self) -> None:
        self.run = None
        if not self._dismissed:
            self._dismissed = True
            self._send(None)

    def _send(self, message: Run | None) -> None:
        with suppress(OSError):  # it is dead; the sentinel says so
            self._connection.send(message)

    def bury(self) -> str:
        """Give back what it held, and say why it ended."""
        self.process.join(GRACE_SECONDS)
        self._connection.close()
        code = self.process.exitcode
        if code is None:
            return "it went silent"
        if code == -signal.SIGKILL:
            return "killed from outside, as happens when memory runs out (fewer --workers need less)"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _stop(staff: list[_Worker]) -> None:
    """End workers: asked first, so that a checkpoint being written gets whole, then forced."""
    for worker in staff:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in staff:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in staff:
        if worker.process.is_alive():
            worker.process.kill()
        worker.bury()


@contextmanager
def _inherited() -> Iterator[None]:
    """What a worker gets from its birth: one thread, and deafness to the terminal's Ctrl-C, which is for us."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _work(connection: Connection, job: bytes, log: str) -> None:
    """The life of a worker: load once, then one run after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C, which what runs here knows how to end on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _redirect(log)
    try:
        execute, workspace = pickle.loads(job)
        connection.send(("ready",))
        while (run := connection.recv()) is not None:
            connection.send(_outcome(execute, run, workspace, connection))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass  # the parent stops, or is gone
    finally:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # there is nothing left to interrupt, nor to say about it


def _outcome(execute: Execute, run: Run, workspace: Any, connection: Connection) -> tuple[Any, ...]:
    begin = time.monotonic()
    last: tuple[str, float] = ("", 0.0)

    def progress(stage: str, share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= REPORT_SECONDS:
            last = (stage, now)
            connection.send(("advanced", stage, float(share)))

    try:
        rows = json.dumps(execute(run, workspace, progress))
    except Exception as error:
        told = " ".join(str(error).split()) or "no message"
        # Deliberate messages stand for themselves; of others the kind of error is half of what they say.
        deliberate = isinstance(error, (RunError, FloatingPointError))
        return "failed", told if deliberate else f"{type(error).__name__}: {told}", traceback.format_exc()
    return "finished", rows, time.monotonic() - begin


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _redirect(log: str) -> None:
    """Whatever is printed, also by libraries in other languages, goes to the log, not through the progress display."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
