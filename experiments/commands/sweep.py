"""``mnemograph sweep``: a W&B sweep file, carried out here where W&B is offline."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands.choice import program
from experiments.errors import RunError

if TYPE_CHECKING:
    from experiments.sweep.config import Sweep
    from experiments.sweep.store import Store

DEFAULT_COUNT = 20
STOPS = (signal.SIGINT, signal.SIGTERM)
SUMMARY = "carry out a W&B sweep file, with W&B's servers or without"
EXAMPLES = """\
  mnemograph sweep sweep.yaml --offline --count 30      here, without W&B's servers; interrupted, it goes on
  mnemograph sweep sweep.yaml --offline --workers 4     four trials at once
  mnemograph sweep sweep.yaml                           with W&B's servers, where an API key is set

sweep.yaml is what `wandb sweep` takes: method, metric, parameters, early_terminate, command. For models of this project
the command is `mnemograph fit` (parameters are named as its options are):

  command: ["${env}", mnemograph, fit, --config, base.yaml, "${args}"]
  method: bayes                      # grid and random too
  metric: {name: valid/bits_per_byte, goal: minimize}
  parameters:
    model.rates.table: {distribution: log_uniform_values, min: 0.003, max: 0.3}
    data.batch_size: {values: [2, 4, 8]}

Any program that calls wandb.init() and logs the metric will do. Offline, a trial is an offline W&B run (`wandb sync`
sends it later), bayes is Optuna's TPE, hyperband is W&B's rule, and what has ended stands in DIR/trials.jsonl."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a W&B sweep file (YAML)")
    parser.add_argument("--offline", action="store_true", help="here, even where W&B could be reached")
    parser.add_argument(
        "--count",
        type=_positive,
        metavar="N",
        help="trials in all; with W&B's servers, of this agent (default: run_cap of the file, the whole grid, "
        f"or {DEFAULT_COUNT})",
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="trials at once, offline (default: 1)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="offline: default runs/sweeps/NAME")
    parser.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of random and bayes, offline (0)"
    )
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument("--fresh", action="store_true", help="set earlier trials in DIR aside and begin anew")
    parser.add_argument(
        "--allow-mixed", action="store_true", help="go on though a file the command names has changed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.sweep.config import read_sweep
    from experiments.sweep.online import run_online, why_offline

    sweep = read_sweep(arguments.file)
    why = "--offline" if arguments.offline else why_offline()
    if why is None:
        if arguments.workers > 1:
            raise RunError(
                "--workers goes with --offline; with W&B's servers, start more agents: wandb agent ID"
            )
        return run_online(sweep, arguments.count)
    return _run_here(sweep, arguments, why)


def _run_here(sweep: Sweep, arguments: argparse.Namespace, why: str) -> int:
    from experiments.sweep.display import Display
    from experiments.sweep.runner import carry_out
    from experiments.sweep.sampler import Sampler
    from experiments.sweep.store import Store

    out = arguments.out or Path("runs") / "sweeps" / sweep.name.replace("/", "-")
    sampler = Sampler(sweep, arguments.seed)
    total, because = _total(sweep, arguments.count, sampler.size)
    store = Store(
        out,
        sweep,
        arguments.seed,
        fresh=arguments.fresh,
        retry=arguments.retry,
        mixed=arguments.allow_mixed,
    )
    with store:
        print(f"Offline ({why}): {total} trials ({because}), in {out}.", flush=True)
        for note in store.notes:
            print(f"note: {note}")
        done = len([trial for trial in store.trials if trial.number < total])
        if done:
            print(f"{done} of them ended before.", flush=True)
        trials = carry_out(sweep, store, sampler, total, arguments.workers)
        try:
            with _interrupted() as asked, Display(sweep, total, done, sys.stderr) as display:
                for event in trials:
                    display.show(event)
                    if asked:
                        trials.close()
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            again = f"{program()} sweep {' '.join(arguments.line[1:])}".replace(" --fresh", "")
            print(f"\nTo continue: {again}", file=sys.stderr)
            raise
        finally:
            trials.close()
        return _told(sweep, store, total)


@contextmanager
def _interrupted() -> Iterator[list[int]]:
    """Fills a list when the process is asked to stop; an exception in the middle of a fork would be lost."""
    asked: list[int] = []
    kept = {one: signal.signal(one, lambda number, _: asked.append(number)) for one in STOPS}
    try:
        yield asked
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


def _told(sweep: Sweep, store: Store, total: int) -> int:
    """What came of it."""
    from shutil import get_terminal_size

    from experiments.sweep.display import pasted, table
    from experiments.sweep.process import command_line
    from experiments.sweep.trial import FAILED, ranked

    failed = [trial for trial in store.trials if trial.state == FAILED]
    best = ranked(store.trials, sweep.metric)
    if not best:
        raise RunError(
            f"all {len(failed)} trials failed, the first with: {failed[0].reason}. What they printed is in "
            f"{store.place(failed[0].number)}; --retry runs them again"
        )
    print(f"\n{table(store.trials, sweep, get_terminal_size((120, 24)).columns)}\n")
    if sweep.metric is not None:
        words = pasted(command_line(sweep, best[0].params, store.place(best[0].number)))
        if sweep.metric.reached(best[0].value):
            print(f"{sweep.metric.name} reached its target, {sweep.metric.target:g}.")
        print(f"The best once more: WANDB_MODE=offline {words}")
    if failed:
        print(f"{len(failed)} of {len(store.trials)} trials failed (--retry runs them again).")
    runs = "-type d -name 'offline-run-*' -exec wandb sync {} +"
    print(f"To send the runs to W&B: find {store.folder / 'trials'} {runs}")
    return 0


def _total(sweep: Sweep, count: int | None, size: int | None) -> tuple[int, str]:
    """How many trials, and why."""
    found = [(count, "--count"), (sweep.run_cap, "run_cap"), (size, "the whole grid")]
    given = [(number, why) for number, why in found if number is not None]
    default = f"neither run_cap nor --count says how many, so {DEFAULT_COUNT}"
    return min(given, key=lambda one: one[0]) if given else (DEFAULT_COUNT, default)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number, such as 4")
    return number
