"""Arguments that choose a study and narrow it, the same for every command that runs one."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import RunError
from experiments.studies import study_names

if TYPE_CHECKING:
    from experiments.study import Study

DEFAULT_STUDY = "memory_per_flop"


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that :func:`chosen_study` reads."""
    parser.add_argument(
        "study",
        nargs="?",
        default=DEFAULT_STUDY,
        help=f"{', '.join(study_names())}, or a file of your own (default: {DEFAULT_STUDY})",
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (dense always runs)")
    parser.add_argument(
        "--widths",
        nargs="+",
        type=positive(int),
        metavar="N",
        help="widths of the dense frontier, at every budget (default: the best ones known)",
    )
    parser.add_argument(
        "--budgets", nargs="+", type=positive(float), metavar="FLOPS", help="such as 1e12 3e12"
    )
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="a text file or a folder of them, for a corpus"
    )
    parser.add_argument(
        "--vocab-size", type=positive(int), metavar="N", help="tokens to learn; 257 for bytes"
    )
    parser.add_argument(
        "--workers", type=positive(int), metavar="N", help="processes (default: one per core)"
    )


def chosen_study(arguments: argparse.Namespace, *, quick: bool = False, seeds: int | None = None) -> Study:
    """The study the arguments ask for.

    Args:
        arguments: With what :func:`add_choice` declares.
        quick: The smallest study of its kind.
        seeds: How many seeds; those of the study by default.

    Raises:
        RunError: If there is no such study, arm or text.
    """
    from experiments.data import CodeCorpus, TextCorpus
    from experiments.study import load_study

    if arguments.data is not None and not arguments.data.expanduser().exists():
        raise RunError(f"{arguments.data} does not exist: give --data a text file or a folder of them")
    study = load_study(arguments.study)
    if quick:
        study = study.quick()
    size = {} if arguments.vocab_size is None else {"vocab_size": arguments.vocab_size}
    data = None
    if arguments.data is not None:
        data = TextCorpus(arguments.data, **size)
    elif size:
        data = CodeCorpus(**size)
    return study.narrowed(
        arms=arguments.arms,
        widths=arguments.widths,
        budgets=arguments.budgets,
        seeds=None if seeds is None else range(seeds),
        data=data,
    )


def positive(kind: type[int] | type[float]) -> Any:
    """Reads a positive number of that kind."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            example = "3" if kind is int else "1e12"
            raise argparse.ArgumentTypeError(f"{text!r} is no positive number, such as {example}")
        return value

    return parse


def program() -> str:
    """The command as it was called, for hints that can be pasted: its folder need not be on the path."""
    called = Path(sys.argv[0])
    found = shutil.which("mnemograph")
    elsewhere = called.name == "mnemograph" and (
        found is None or not called.exists() or not called.samefile(found)
    )
    return shlex.quote(str(called)) if elsewhere else "mnemograph"
