"""``mnemograph tune``: the same number of trials for every arm, and what they found."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from experiments.commands.choice import add_choice, chosen_study

SUMMARY = "search batch, depth and step sizes with the same number of trials for every arm"
EXAMPLES = """\
  mnemograph tune --budgets 1e12                      the arms of the default comparison
  mnemograph tune mine.py --data my_texts/            your own study, on your own text

Dense is tuned at every width of its frontier, arms at the width that is best for the budget. Each round steps down
and up from the best trial so far, along batch, depth and three kinds of step size in turn; a larger budget begins with
what a smaller one found. Trials that have finished are never repeated. A study uses what was found by
`tuned=tuned(Path("runs/tuning/tuned.json"))`."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_choice(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tuning"), metavar="DIR", help="where trials go"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of two trials each, beside the first (default: 5)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.commands.compare import load_corpus
    from experiments.compare import carry_out, cost
    from experiments.data.corpus import cache_root
    from experiments.frontier import DENSE
    from experiments.results import Results
    from experiments.run import execute
    from experiments.scheduler import available_cores
    from experiments.study import StudyWorkspace, named_study
    from experiments.tuning import COORDINATES, best, round_of

    study = chosen_study(arguments)
    name, cache = named_study(arguments.study), cache_root().parent
    workspace = StudyWorkspace(study.data, arguments.out.resolve(), cache, arms=study.arm_table, study=name)
    corpus = load_corpus(study.data)
    workers = arguments.workers or available_cores()
    failed = []
    with Results(arguments.out, corpus.fingerprint, "tuning") as results:
        # Smaller budgets first: larger ones begin with what those found.
        for budget, number in itertools.product(sorted(study.budgets), range(arguments.rounds + 1)):
            runs = round_of(study, float(budget), results.rows, number)
            pending = [trial for trial in runs if trial.key(corpus.fingerprint) not in results.finished]
            what = COORDINATES[(number - 1) % len(COORDINATES)] if number else "where to begin"
            title = f"{budget:.0e}, round {number} of {arguments.rounds}, {what}"
            print(f"{title}: {cost(pending, results.rows, workers)}")
            failed += carry_out(runs, results, workspace, execute, workers=workers, stream=sys.stderr)
        found = best(results.rows)
    path = arguments.out / "tuned.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    for entry in found:
        edge = f"; at the edge of its range: {', '.join(entry['at_edge'])}" if entry["at_edge"] else ""
        print(
            f"{entry['arm']} ({entry['regime']}), width {entry['width']}, {entry['budget']:.0e}: "
            f"{entry['bits_per_byte']:.4f} bits per byte after {entry['trials']} trials{edge}"
        )
    for budget in sorted({entry["budget"] for entry in found}):
        dense = [entry for entry in found if entry["arm"] == DENSE and entry["budget"] == budget]
        width = min(dense, key=lambda entry: entry["bits_per_byte"])["width"]
        print(f"The best width of dense at {budget:.0e} is {width}.")
    print(f"The winners are in {path}.")
    return 1 if failed else 0
