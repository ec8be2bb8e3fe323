"""Carrying a sweep out: trials started, followed, given up, recorded."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from experiments.errors import RunError
from experiments.sweep.config import Sweep
from experiments.sweep.hyperband import at_stops, gives_up
from experiments.sweep.log import RunLog, can_follow, find_log
from experiments.sweep.process import TrialProcess, command_line, emptied, environment
from experiments.sweep.sampler import Sampler
from experiments.sweep.store import Store
from experiments.sweep.trial import FAILED, FINISHED, STOPPED, Place, State, Trial

POLL_SECONDS = 0.1
READ_SECONDS = 1.0
# When all of the first trials fail, the next ones would too.
HOPELESS = 5


@dataclass
class Running:
    """A trial under way."""

    number: int
    place: Place
    params: dict[str, Any]
    process: TrialProcess
    log: RunLog | None = None
    read: float = 0.0


def carry_out(
    sweep: Sweep, store: Store, sampler: Sampler, total: int, workers: int
) -> Generator[Running | Trial, None, None]:
    """Run what is missing of the first ``total`` trials.

    Yields a trial when it begins and again when it has ended and is recorded; :attr:`Running.log` of those under way
    grows meanwhile, and the newest of them is yielded again now and then. Closing the iterator ends what is running.

    Raises:
        RunError: If the first trials all fail, or W&B's log cannot be followed.
    """
    if sweep.early_terminate is not None and not can_follow():
        raise RunError(
            "early_terminate needs a newer wandb, which writes while it runs: pip install -U wandb"
        )
    running: dict[int, Running] = {}
    try:
        while True:
            if not _done(sweep, store):
                for number in _next(store, running, total, workers):
                    running[number] = _begin(sweep, store, sampler, number, running, workers)
                    yield running[number]
            if not running:
                return
            time.sleep(POLL_SECONDS)
            for trial in list(running.values()):
                ended = _look(sweep, store, trial, running)
                if ended is not None:
                    del running[trial.number]
                    store.append(ended)
                yield ended or trial
    finally:
        for trial in running.values():
            trial.process.end()


def _next(store: Store, running: dict[int, Running], total: int, workers: int) -> list[int]:
    taken = {trial.number for trial in store.trials} | set(running)
    free = workers - len(running)
    return [number for number in range(total) if number not in taken][:free]


def _done(sweep: Sweep, store: Store) -> bool:
    failed = [trial for trial in store.trials if trial.state == FAILED]
    if len(failed) == len(store.trials) >= HOPELESS:
        return True
    return sweep.metric is not None and any(
        sweep.metric.reached(trial.value) for trial in store.trials if trial.state == FINISHED
    )


def _begin(
    sweep: Sweep, store: Store, sampler: Sampler, number: int, running: dict[int, Running], workers: int
) -> Running:
    place = sampler.place(number, store.trials, [trial.place for trial in running.values()])
    params = sampler.params(place)
    folder = emptied(store.place(number))
    environ = environment(sweep, params, store.run(number), folder, number, workers)
    return Running(number, place, params, TrialProcess(command_line(sweep, params, folder), environ, folder))


def _look(sweep: Sweep, store: Store, trial: Running, running: dict[int, Running]) -> Trial | None:
    """What has become of a trial, if it has ended."""
    code = trial.process.code()
    if code is None and time.monotonic() - trial.read < READ_SECONDS:
        return None
    trial.read = time.monotonic()
    if trial.log is None:
        path = find_log(store.place(trial.number), store.run(trial.number), trial.process.said())
        trial.log = None if path is None else RunLog(path, sweep.metric.name if sweep.metric else None)
    if trial.log is not None:
        trial.log.read()
    if code is None:
        if not _hopeless(sweep, store, trial, running):
            return None
        trial.process.end()
        return _ended(sweep, store, trial, STOPPED)
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        return _ended(sweep, store, trial, FAILED, f"{trial.process.last_words()} ({how})")
    missing = _missing(sweep, trial)
    return _ended(sweep, store, trial, FAILED if missing else FINISHED, missing)


def _missing(sweep: Sweep, trial: Running) -> str:
    if sweep.metric is None:
        return ""
    if trial.log is None:
        return "it began no W&B run: metric.name is read from what it gives to wandb.log"
    if trial.log.value is not None:
        return ""
    names = sorted(name for name in trial.log.names if not name.startswith("_"))
    if sweep.metric.name in names:
        return f"{sweep.metric.name} was no finite number"
    return f"it did not log {sweep.metric.name!r} but {', '.join(names) or 'nothing'}"


def _hopeless(sweep: Sweep, store: Store, trial: Running, running: dict[int, Running]) -> bool:
    settings = sweep.early_terminate
    if settings is None or trial.log is None:
        return False
    others = [other.stops for other in store.trials]
    others += [
        at_stops(settings, _costs(sweep, one)) for one in running.values() if one is not trial and one.log
    ]
    return gives_up(settings, _costs(sweep, trial), others)


def _costs(sweep: Sweep, trial: Running) -> list[float]:
    assert sweep.metric is not None
    return [sweep.metric.cost(value) for value in (trial.log.values if trial.log else ())]


def _ended(sweep: Sweep, store: Store, trial: Running, state: State, reason: str = "") -> Trial:
    early = sweep.early_terminate
    return Trial(
        number=trial.number,
        params=trial.params,
        state=state,
        value=trial.log.value if trial.log else None,
        steps=len(trial.log.values) if trial.log else 0,
        seconds=round(trial.process.seconds, 2),
        run=store.run(trial.number),
        place=trial.place,
        stops=at_stops(early, _costs(sweep, trial)) if early else {},
        reason=reason,
    )
