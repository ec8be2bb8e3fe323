"""``mnemograph compare``: run what is missing of a study, then print and draw the answer."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands.choice import add_choice, chosen_study, positive, program
from experiments.errors import ResultsError, RunError

if TYPE_CHECKING:
    from experiments.results import Results
    from experiments.run import Run
    from experiments.study import Study


SUMMARY = "compare memory arms with dense transformers at equal, fully counted compute"
EXAMPLES = """\
  mnemograph compare --quick                 a first answer in a few minutes
  mnemograph compare --arms ngram graph --budgets 1e12 --seeds 3 --data my_texts/
  mnemograph compare mine.py                 a study of your own, an arm of your own: docs/studies.md shows one

Runs that have finished are never repeated: stop with Ctrl-C and give the same command again to continue."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_choice(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: runs/STUDY)")
    parser.add_argument("--quick", action="store_true", help="one small budget, one seed, the main arms")
    parser.add_argument(
        "--plan", action="store_true", help="print what would run and what it costs, and stop"
    )
    parser.add_argument("--seeds", type=positive(int), metavar="N", help="how many seeds")
    parser.add_argument("--wandb", choices=("off", "offline", "online"), default="off", help="log to W&B")
    parser.add_argument(
        "--fresh", action="store_true", help="set earlier results in DIR aside and begin anew"
    )
    parser.add_argument(
        "--allow-mixed", action="store_true", help="accept earlier results of another revision of the code"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.results import claim, claimable

    name = Path(arguments.study).stem + ("-quick" if arguments.quick else "")
    out = arguments.out or Path("runs") / name
    existed = out.exists()
    (claimable if arguments.plan else claim)(out)  # before the seconds that loading takes
    try:
        return _run(out, arguments)
    finally:
        if not existed:  # a command that is refused leaves no empty folder
            with suppress(OSError):
                out.rmdir()


def _run(out: Path, arguments: argparse.Namespace) -> int:
    from experiments.scheduler import available_cores

    study = chosen_study(arguments, quick=arguments.quick, seeds=arguments.seeds)
    runs = study.plan()
    workers = arguments.workers or available_cores()
    return (_plan if arguments.plan else _compare)(study, runs, out, workers, arguments)


def _plan(study: Study, runs: list[Run], out: Path, workers: int, arguments: argparse.Namespace) -> int:
    """Say what would run, after the same checks, and leave everything as it is."""
    from experiments.compare import cost
    from experiments.data.corpus import cache_root
    from experiments.results import Results
    from experiments.workspace import Workspace

    corpus = load_corpus(study.data)
    runs = check_plan(study, runs, corpus)
    results = Results(out, corpus.fingerprint, study.name)
    if not arguments.fresh:
        results.look()
        revision = Workspace(study.data, out, cache_root().parent).revision
        _check(results, runs, revision, arguments.allow_mixed)
    for planned in runs:
        print(f"  {planned.label()}")
    print(f"{study.name}: {study.question}")
    pending = results.missing(runs)
    if len(pending) < len(runs):
        print(f"{len(runs) - len(pending)} of {len(runs)} runs have finished before.")
    print(cost(pending, results.rows, workers))
    return 0


def check_plan(study: Study, runs: list[Run], corpus: Any) -> list[Run]:
    """Find out before anything is trained, or set aside, what sizes, text and arms make impossible.

    Args:
        study: Whose arms run.
        runs: What is planned.
        corpus: What they would train on.

    Returns:
        The runs, those of an arm that could not be asked whether it reads the future with why.

    Raises:
        RunError: Naming the run or the arm, and what to change.
        CorpusError: If a split is shorter than a window.
    """
    from experiments.arm_checks import check_arms
    from experiments.step import check_sizes

    check_sizes(runs, study.arm_table, corpus)
    unasked = check_arms(runs, study.arm_table, corpus)
    for note in unasked.values():
        print(f"Note: {note}", file=sys.stderr)
    return [replace(planned, unasked=unasked.get(planned.arm, "")) for planned in runs]


def _compare(study: Study, runs: list[Run], out: Path, workers: int, arguments: argparse.Namespace) -> int:
    from experiments.commands.report import conclude, remember
    from experiments.compare import carry_out, cost
    from experiments.controls import overlap
    from experiments.data.corpus import cache_root
    from experiments.frontier.checks import diverged
    from experiments.results import Results
    from experiments.run import execute
    from experiments.study import StudyWorkspace, named_study

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = shlex.join(word for word in arguments.line if word != "--fresh")
    again = f"{program()} {words}"
    name = named_study(arguments.study)
    cache = cache_root().parent
    workspace = StudyWorkspace(study.data, out.resolve(), cache, arguments.wandb, study.arm_table, name)
    corpus = load_corpus(study.data)
    runs = check_plan(study, runs, corpus)
    with Results(out, corpus.fingerprint, study.name, fresh=arguments.fresh) as results:
        for note in results.notes:
            print(f"Note: {note}", file=sys.stderr)
        _check(results, runs, workspace.revision, arguments.allow_mixed)
        pending = results.missing(runs)
        print(f"{study.name}: {study.question}")
        if len(pending) < len(runs):
            print(f"{len(runs) - len(pending)} of {len(runs)} runs have finished before.")
        if pending:
            print(f"To do: {cost(pending, results.rows, workers)}.")
        about: dict[str, Any] = {
            "question": study.question,
            "command": f"mnemograph {words}",
            "corpus": corpus.description,
        }
        remember(out, about)
        try:
            failed = carry_out(runs, results, workspace, execute, workers=workers, stream=sys.stderr)
        except KeyboardInterrupt:
            done = len(runs) - len(results.missing(runs))
            print(
                f"Stopped. {done} of {len(runs)} runs have finished and are kept in {out}. To continue: {again}\n"
                f"To see what there is so far: {program()} report {shlex.quote(str(out))}",
                file=sys.stderr,
            )
            return 130
        if all(map(diverged, results.rows)):
            first = failed[0] if failed else None
            told = (
                f" The first: {first.run.label()}: {first.reason}"
                if first
                else f" See {out / 'failures.log'}"
            )
            raise RunError(f"no run finished.{told}")
        print("Comparing held-out text with training text", file=sys.stderr)
        about["audit"] = {
            name: {f"{n} tokens found in train": share for n, share in shares.items()}
            for name, shares in overlap(corpus).items()
        }
        remember(out, about)
        conclude(results.rows, out, about, allow_mixed=arguments.allow_mixed, wandb=arguments.wandb)
    lost = [event for event in failed if event.diverged]
    if lost:
        print(
            f"{len(lost)} runs diverged, the first with: {lost[0].reason}. That is a result: the report names them, "
            "and they are not tried again",
            file=sys.stderr,
        )
    if len(failed) > len(lost):
        where = out / "failures.log"
        print(
            f"{len(failed) - len(lost)} runs failed; {where} says where. To try them again: {again}",
            file=sys.stderr,
        )
        return 1
    return 0


def load_corpus(spec: Any) -> Any:
    """Load a corpus, saying what is happening while it takes long."""
    from experiments.data.corpus import CorpusError

    said: set[str] = set()

    def progress(stage: str, share: float) -> None:
        if stage not in said:
            said.add(stage)
            print(f"Building the corpus: {stage}", file=sys.stderr)

    try:
        return spec.load(progress)
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(str(error)) from error


def _check(results: Results, runs: list[Run], revision: str, allow_mixed: bool) -> None:
    """Refuse now what the report would refuse in the end."""
    from experiments.results import conflicts, place

    path = results.folder / "results.jsonl"
    remedy = "give another --out, or --fresh to set them aside and begin anew"
    planned = {place(run.to_dict()): run.key(results.corpus) for run in runs}
    other = conflicts(results.rows, planned)
    if other:
        first = next(run for run in runs if place(run.to_dict()) == place(other[0]))
        raise ResultsError(
            f"{path} holds {len(other)} results of the same runs with other settings, such as {first.label()}"
            f"{_differences(other[0].get('settings', {}), first.settings)}: {remedy}"
        )
    if not allow_mixed:
        touches = f"{remedy}, or --allow-mixed if you know that the change touches no number"
        results.check_revision(revision, touches)


def _differences(there: Any, now: Any) -> str:
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    told = [f"{name} {there.get(name)} there, {now.get(name)} now" for name in names[:3]]
    return f" ({'; '.join(told)})" if told else ""
