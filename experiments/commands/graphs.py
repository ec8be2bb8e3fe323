"""``mnemograph graphs``: published results on graphs, run again with everything counted."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands.choice import positive
from experiments.errors import RunError
from experiments.graphs.recipes import CONTROL, RECIPES, SETS

if TYPE_CHECKING:
    from experiments.graphs.results import GraphResults
    from experiments.graphs.runner import Run

SUMMARY = "run published results on graphs again, beside a perceptron of as many FLOPs"
DEFAULT_SETS = ("cora", "citeseer")
DEFAULT_RULE = "best_val_loss"
EXAMPLES = f"""\
  mnemograph graphs --data graphs/                          Cora and CiteSeer, ten seeds, all models
  mnemograph graphs cora --models mlp sgc gcn gat --data graphs/ --seeds 3
  mnemograph graphs csl                                     generated: needs no files
  mnemograph graphs minesweeper --models tuned-gcn --data graphs/ --plan

Sets: {", ".join(SETS)}.
Of sets with several official splits or folds, each seed takes the next one.
DIR holds cora.npz, citeseer.npz, minesweeper.npz, tolokers.npz, or PROTEINS_A.txt and its companions, in itself or a
folder of it; what PyG's loaders download is found where they put it. Every run writes one line to results.jsonl: the
test measure by three rules of choosing an epoch, FLOPs and bytes of training, of what goes before it, and of choosing.
Runs that have finished are never repeated: stop with Ctrl-C and give the same command again to continue."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help=f"which sets (default: {' '.join(DEFAULT_SETS)})"
    )
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="only these models (default: all of a set)"
    )
    parser.add_argument(
        "--seeds", type=positive(int), default=10, metavar="N", help="how many seeds (default: 10)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the files of the sets are")
    parser.add_argument(
        "--pickles",
        action="store_true",
        help="read ind.cora.* and ind.citeseer.* too; that runs whatever is in them",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / "graphs", metavar="DIR", help="default: runs/graphs"
    )
    parser.add_argument(
        "--rule",
        default=DEFAULT_RULE,
        choices=("last", "best_val_loss", "best_val_measure"),
        help=f"which epoch the table reports (default: {DEFAULT_RULE})",
    )
    parser.add_argument(
        "--no-control", action="store_true", help="without the perceptrons whose FLOPs are matched"
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument(
        "--fresh", action="store_true", help="set earlier results in DIR aside and begin anew"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    sets = list(dict.fromkeys(arguments.sets or DEFAULT_SETS))
    models = _models(sets, arguments.models)
    if arguments.data is not None and not arguments.data.expanduser().is_dir():
        raise RunError(f"{arguments.data} is no folder: give --data the one that holds the files of the sets")
    from experiments.graphs.results import GraphResults
    from experiments.graphs.tables import tables

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = _runs(sets, models, arguments)
    results = GraphResults(arguments.out, fresh=arguments.fresh)
    if arguments.plan:
        results.look()
        pending = runs if arguments.fresh else results.missing_of(runs)
        print("\n".join(f"  {one.label()}: at most {one.recipe.epochs:,} epochs" for one in pending))
        print(f"{len(pending)} of {len(runs)} runs are missing")
        return 0
    with results:
        pending = results.missing_of(runs)
        for note in results.notes:
            print(f"Note: {note}", file=sys.stderr)
        _carry_out(pending, results)
        finished = results.by_run()
    rows = [finished[one.key] for one in runs]
    print(tables(rows, arguments.rule))
    print(f"\n{len(rows)} runs are in {arguments.out / 'results.jsonl'}.")
    return 0


def _models(sets: Sequence[str], asked: Sequence[str] | None) -> dict[str, list[str]]:
    """Which models run on each set."""
    for name in sets:
        if name not in SETS:
            raise RunError(f"there is no set {name!r}{_close(name, SETS)}: the sets are {', '.join(SETS)}")
    there = dict.fromkeys(model for name in sets for model in RECIPES[name])
    for model in asked or ():
        if model not in there:
            raise RunError(
                f"no recipe of {model!r} for {', '.join(sets)}{_close(model, there)}: there are {', '.join(there)}"
            )
    return {name: [model for model in RECIPES[name] if not asked or model in asked] for name in sets}


def _close(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _runs(sets: Sequence[str], models: dict[str, list[str]], arguments: argparse.Namespace) -> list[Run]:
    """All runs, each control behind the run that it is matched with."""
    from experiments.graphs.runner import Run
    from experiments.graphs.sources import find, missing_files

    folder = None if arguments.data is None else arguments.data.expanduser()
    found = {name: find(name, folder, pickles=arguments.pickles) for name in sets}
    if missing := [missing_files(name, folder) for name, source in found.items() if source is None]:
        raise RunError("; ".join(missing))
    runs = []
    for name, source in found.items():
        assert source is not None
        for model in models[name]:
            with_control = not (arguments.no_control or model == CONTROL or SETS[name].of_graphs)
            for seed in range(arguments.seeds):
                runs += [
                    Run(source, model, seed, control)
                    for control in ((False, True) if with_control else (False,))
                ]
    return runs


def _carry_out(pending: Sequence[Run], results: GraphResults) -> None:
    from experiments.commands.store_output import Bar
    from experiments.graphs.runner import execute

    if not pending:
        return
    ends = 0
    with Bar("graphs", sum(one.recipe.epochs for one in pending), unit="epochs") as bar:
        for one in pending:
            begin, ends = ends, ends + one.recipe.epochs
            reached = [begin]

            def step(reached: list[int] = reached, end: int = ends) -> None:
                reached[0] = min(reached[0] + 1, end)
                bar.advance(reached[0])

            budget = None
            if one.control:
                matched = results.by_run()[one.partner.key]
                budget = matched["train_flops"] + matched["preprocessing_flops"]
            row = execute(one, budget, step)
            results.append([row])
            bar.advance(ends)
            _say(one, row)


def _say(one: Run, row: dict[str, Any]) -> None:
    value = 100 * row["rules"][DEFAULT_RULE][f"test_{row['measure']}"]
    print(
        f"{one.label()}: {value:.2f} % test {row['measure'].replace('_', ' ')}, "
        f"{row['train_flops']:.2e} FLOPs, {row['seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )
