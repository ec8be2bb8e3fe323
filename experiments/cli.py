"""The ``mnemograph`` command.

Nothing heavy is imported until a command runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from experiments.commands import bill, compare, corpus, fit, graphs, report, store, sweep, tune

DEBUG = "MNEMOGRAPH_DEBUG"
COMMANDS = {
    "compare": compare,
    "report": report,
    "bill": bill,
    "corpus": corpus,
    "tune": tune,
    "fit": fit,
    "sweep": sweep,
    "store": store,
    "graphs": graphs,
}
OURS = {"experiments", "gnn", "mann", "retrieval"}
WELCOME = """\
mnemograph asks whether memory buys more than width, per FLOP, with everything counted.

{commands}

Begin with
  mnemograph compare --quick    a first answer in a few minutes
  mnemograph compare --plan     what the whole comparison would run, and for how long

mnemograph COMMAND --help says more about each, mnemograph --version which one this is."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 1 some runs failed, 2 something to correct, 130 interrupted.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("help", "-h", "--help"):
        print(_welcome())
        return 0
    if given[0] == "--version":
        print(f"mnemograph {_version()}")
        return 0
    _check_command(given[0])
    # What `fit` takes is read by jsonargparse, from the constructors.
    fitting = given[0] == "fit"
    arguments = argparse.Namespace(command="fit") if fitting else _parser().parse_args(given)
    arguments.line = given
    try:
        return COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mnemograph ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _told(error, arguments.command)


def _told(error: Exception, command: str) -> int:
    if os.environ.get(DEBUG):
        traceback.print_exc()
        return 2
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    if type(error).__module__.partition(".")[0] in OURS or isinstance(error, OSError):
        print(f"mnemograph {command}: {message}", file=sys.stderr)
        return 2
    print(
        f"mnemograph {command}: unexpected {type(error).__name__}: {message} ({DEBUG}=1 shows where)",
        file=sys.stderr,
    )
    return 1


def _welcome() -> str:
    lines = [f"  mnemograph {name:<8}  {module.SUMMARY}" for name, module in COMMANDS.items()]
    return WELCOME.format(commands="\n".join(lines))


def _version() -> str:
    try:
        return version("mnemograph")
    except PackageNotFoundError:
        return "(not installed: its folder is used as it is)"


def _check_command(word: str) -> None:
    if word in COMMANDS:
        return
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    Parser(prog="mnemograph").error(f"unknown command {word!r}: {hint}The commands are {', '.join(COMMANDS)}")


def _parser() -> Parser:
    parser = Parser(prog="mnemograph")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        sub = commands.add_parser(
            name,
            prog=f"mnemograph {name}",
            description=module.SUMMARY[0].upper() + module.SUMMARY[1:] + ".",
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.configure(sub)
    return parser
