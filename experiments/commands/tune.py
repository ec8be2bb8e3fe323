"""``mnemograph tune``: the same number of trials for every arm, and what they found."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SUMMARY = "search step sizes and depth with the same number of trials for every arm"
EXAMPLES = """\
  mnemograph tune --budget 1e12 --trials 8         the trials behind the default comparison
  mnemograph tune --arms ngram --trials 16         more trials, for one arm and dense alike

Trials that have finished are never repeated."""
DENSE_WIDTHS = (32, 48, 64, 96)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tuning"), metavar="DIR", help="where trials go"
    )
    parser.add_argument("--budget", type=float, default=1e12, metavar="FLOPS", help="of one trial")
    parser.add_argument(
        "--trials", type=int, default=8, metavar="N", help="per arm and width, beside the defaults"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these (dense is always tuned)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="width of the arms")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.arms import ARMS, NO_STORE, SAME_TOKENS, WHOLE_CORPUS, arm_named
    from experiments.commands.compare import load_corpus
    from experiments.compare import carry_out, cost
    from experiments.data import CodeCorpus
    from experiments.data.corpus import cache_root
    from experiments.results import Results
    from experiments.run import execute
    from experiments.scheduler import available_cores
    from experiments.studies.memory_per_flop import SIZED
    from experiments.tuning import best, plan
    from experiments.workspace import Workspace

    names = arguments.arms or [name for name, arm in ARMS.items() if name != "dense"]
    places = [("dense", NO_STORE, width) for width in DENSE_WIDTHS]
    for name in names:
        arm = arm_named(name)
        regimes = (NO_STORE,) if arm.source is None else (SAME_TOKENS, WHOLE_CORPUS)
        places += [(arm.name, regime, arguments.width) for regime in regimes]
    runs = plan(places, arguments.budget, arguments.trials, SIZED)
    workspace = Workspace(CodeCorpus(), arguments.out.resolve(), cache_root().parent)
    corpus = load_corpus(workspace.spec)
    workers = arguments.workers or available_cores()
    with Results(arguments.out, corpus.fingerprint, "tuning") as results:
        print(cost(runs, results.rows, workers))
        failed = carry_out(runs, results, workspace, execute, workers=workers, stream=sys.stderr)
        planned = {run.key(corpus.fingerprint) for run in runs}
        found = best([row for row in results.rows if row["run"] in planned])
    path = arguments.out / "tuned.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    for entry in found:
        edge = f"; at the edge of its range: {', '.join(entry['at_edge'])}" if entry["at_edge"] else ""
        print(
            f"{entry['arm']} ({entry['regime']}), width {entry['width']}: {entry['bits_per_byte']:.4f} bits per byte "
            f"after {entry['trials']} trials{edge}"
        )
    print(f"The winners are in {path}.")
    return 1 if failed else 0
