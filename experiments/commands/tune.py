"""``mnemograph tune``: the same number of trials for every arm, and what they found."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands.choice import add_choice, chosen_study
from experiments.errors import RunError

if TYPE_CHECKING:
    from experiments.results import Results
    from experiments.run import Run
    from experiments.study import Study

SUMMARY = "search batch, depth and step sizes with the same number of trials for every arm"
EXAMPLES = """\
  mnemograph tune --budgets 1e12                      the arms of the default comparison
  mnemograph tune mine.py --data my_texts/            your own study, on your own text

Dense is tuned at every width of its frontier, arms at the width that is best for the budget. Each round tries batch,
depth and three kinds of step size at eight quasi-random points around the best trial so far, the same points for all,
in a range that narrows from round to round. The search begins at the smallest budget; each other one begins with what
the nearest one before it found, and does the narrow rounds alone. Where the study rests on an earlier search of all its
places, this one goes on from there, in the narrow rounds. Trials that have finished are never repeated. A study
uses what was found by `tuned=tuned(Path(".../tuned.json"))`, with `from experiments.tuning import tuned`."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_choice(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where trials go (default: runs/tuning/STUDY)"
    )
    parser.add_argument(
        "--rounds", type=int, default=4, metavar="N", help="1 to 4, of eight trials each (default: 4)"
    )
    parser.add_argument("--fresh", action="store_true", help="set earlier trials in DIR aside and begin anew")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.arm_checks import check_arms
    from experiments.commands.compare import load_corpus
    from experiments.data.corpus import cache_root
    from experiments.results import Results, claim
    from experiments.study import StudyWorkspace, named_study

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    study = chosen_study(arguments)
    if arguments.budgets:  # then no others, as a comparison would need
        study = replace(study, reach=())
    out = arguments.out or Path("runs") / "tuning" / study.name
    claim(out)
    name, cache = named_study(arguments.study), cache_root().parent
    workspace = StudyWorkspace(study.data, out.resolve(), cache, arms=study.arm_table, study=name)
    corpus = load_corpus(study.data)
    for note in check_arms(study.plan(), study.arm_table, corpus).values():
        print(f"Note: {note}", file=sys.stderr)
    with Results(out, corpus.fingerprint, "tuning", fresh=arguments.fresh) as results:
        results.check_revision(
            workspace.revision, "give another --out, or --fresh to set them aside and begin anew"
        )
        found = _search(study, results, workspace, out, arguments)
    for entry in found:
        edge = f"; at the edge of what was tried: {', '.join(entry['at_edge'])}" if entry["at_edge"] else ""
        print(
            f"{entry['arm']} ({entry['regime']}), width {entry['width']}, {_budget(entry)}: "
            f"{entry['bits_per_byte']:.4f} bits per byte after {entry['trials']} trials{edge}"
        )
    print(_best_widths(found))
    print(f"The winners are in {out / 'tuned.json'}.")
    return 0


def _search(
    study: Study, results: Results, workspace: Any, out: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    from experiments.compare import carry_out, cost
    from experiments.run import execute
    from experiments.scheduler import available_cores
    from experiments.tuning import tune

    workers = arguments.workers or available_cores()

    def missing(title: str, runs: list[Run]) -> None:
        pending = results.missing(runs)
        if pending:
            print(f"{title}: {cost(pending, results.rows, workers)}")
        # What costs more than the budget has lost, as what diverged has: both are found out by trying.
        failed = carry_out(
            runs, results, workspace, execute, workers=workers, stream=sys.stderr, unaffordable=True
        )
        broken = [event for event in failed if not (event.diverged or event.unaffordable)]
        if broken:
            raise RunError(
                f"{len(broken)} trials failed, the first with: {broken[0].reason}. The search goes on when none is "
                "missing: give the same command again"
            )

    found: list[dict[str, Any]] = []
    for found in tune(study, results, missing, arguments.rounds):
        beside = out / "tuned.json.new"
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(out / "tuned.json")
    return found


def _best_widths(found: Sequence[dict[str, Any]]) -> str:
    from experiments.frontier import DENSE

    best: dict[str, dict[str, Any]] = {}
    for entry in found:
        if entry["arm"] == DENSE:
            best[_budget(entry)] = min(
                entry, best.get(_budget(entry), entry), key=lambda one: one["bits_per_byte"]
            )
    told = ", ".join(f"{entry['width']} at {budget}" for budget, entry in best.items())
    return f"The best widths of dense: {told}."


def _budget(entry: dict[str, Any]) -> str:
    from experiments.frontier import budget_key

    return budget_key(entry["budget"])
