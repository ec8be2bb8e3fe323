"""``mnemograph report``: the answer from finished runs, in every form that people need."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.errors import ResultsError

if TYPE_CHECKING:
    from experiments.report import Findings

SUMMARY = "print and draw the answer from the runs that have finished, without running any"
EXAMPLES = """\
  mnemograph report runs/memory_per_flop                      page, figure and numbers, and the tables here
  mnemograph report runs/memory_per_flop --format latex       tables for a paper, printed
  mnemograph report runs/a runs/b --format all --out both     every format, of the runs of two folders"""
ABOUT = "about.json"
NAMES = ("table", "csv", "markdown", "latex", "json", "html", "png", "svg", "profiles")
ALL = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a folder that `mnemograph compare` wrote, or its results.jsonl; several are taken together",
    )
    parser.add_argument(
        "--format",
        action="append",
        type=_formats,
        metavar="FORMAT",
        help=f"{', '.join(NAMES)} or {ALL}; more than one: again, or with commas. One format that is text is printed "
        "unless --out is given (default: html, png and json in DIR, and the tables here)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where files go (default: DIR, if it is one)")
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="log the report to W&B"
    )
    parser.add_argument(
        "--allow-mixed", action="store_true", help="accept results of several revisions of the code"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.report.formats import FORMATS

    folders = [_folder(path) for path in arguments.paths]
    formats = list(dict.fromkeys(name for given in arguments.format or [] for name in given))
    rows = _rows(folders)
    printed = len(formats) == 1 and arguments.out is None and FORMATS[formats[0]].printed
    out = arguments.out or (folders[0] if len(folders) == 1 else None)
    if out is None and not (printed and arguments.wandb == "off"):
        raise ResultsError("of several folders none is the place of their report: give --out DIR")
    about = _about(folders)
    if not formats:
        assert out is not None
        conclude(rows, out, about, allow_mixed=arguments.allow_mixed, wandb=arguments.wandb)
        return 0
    findings = _find(rows, about, folders[0], allow_mixed=arguments.allow_mixed)
    if printed:
        sys.stdout.write(FORMATS[formats[0]].to_bytes(findings).decode())
    else:
        assert out is not None
        print("\n".join(_files(findings, out, formats)))
    _track(findings, arguments.wandb, out)
    return 0


def conclude(
    rows: list[dict[str, Any]],
    folder: Path,
    about: dict[str, Any],
    *,
    allow_mixed: bool = False,
    wandb: Literal["off", "offline", "online"] = "off",
) -> None:
    """Write the report and print what it says.

    Args:
        rows: The finished runs.
        folder: Where the report goes.
        about: What the rows do not say: ``corpus`` (its description), ``audit``, ``command``, ``question``.
        allow_mixed: Accept rows of several revisions of the code.
        wandb: Log the report to Weights & Biases, and how.

    Raises:
        ResultsError: If the rows cannot be compared, or the folder cannot be written to.
    """
    from experiments.report import print_table
    from experiments.report.formats import USUAL

    findings = _find(rows, about, folder, allow_mixed=allow_mixed)
    files = _files(findings, folder, USUAL)
    print_table(findings.summary)
    print()
    print("\n".join(files))
    if (folder / "results.jsonl").exists():
        print(f"{folder / 'results.jsonl'}  every run")
    _track(findings, wandb, folder)


def remember(folder: Path, about: dict[str, Any]) -> None:
    """Keep what a later report needs and rows do not say."""
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def _formats(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*NAMES, ALL):
            raise argparse.ArgumentTypeError(
                f"there is no format {name!r}: the formats are {', '.join(NAMES)} and {ALL}"
            )
    return NAMES if ALL in names else tuple(names)


def _folder(path: Path) -> Path:
    """The folder whose results are meant."""
    from experiments.results import FILE

    if path.is_dir():
        return path
    if path.is_file() and path.name == FILE:
        return path.parent
    if path.exists():
        raise ResultsError(f"{path} is not called {FILE}: put it into a folder of its own, under that name")
    raise ResultsError(f"there is no folder {path}: give the --out of `mnemograph compare`, such as runs/...")


def _rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    from experiments.results import read_rows

    rows: list[dict[str, Any]] = []
    for folder in folders:
        found, notes = read_rows(folder)
        if not found:
            raise ResultsError(f"no run has finished in {folder} yet: mnemograph compare --out {folder}")
        for note in notes:
            print(f"Note: {note}", file=sys.stderr)
        rows += found
    return rows


def _about(folders: Sequence[Path]) -> dict[str, Any]:
    """What the folders say of themselves, the first that says it; several have no one command that made them."""
    about: dict[str, Any] = {}
    for folder in folders:
        try:
            said = json.loads((folder / ABOUT).read_text())
        except (OSError, ValueError):
            continue
        about = {**said, **about} if isinstance(said, dict) else about
    if len(folders) > 1:
        about["command"] = f"mnemograph report {shlex.join(map(str, folders))}"
    return about


def _find(rows: list[dict[str, Any]], about: dict[str, Any], folder: Path, *, allow_mixed: bool) -> Findings:
    from experiments.report import find

    return find(
        rows,
        corpus=about.get("corpus"),
        audit=about.get("audit"),
        command=about.get("command") or f"mnemograph report {folder}",
        question=about.get("question"),
        allow_mixed=allow_mixed,
    )


def _files(findings: Findings, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write them, and say of each what it is."""
    from experiments.report.formats import FORMATS
    from experiments.report.write import write_formats
    from experiments.results import claim

    claim(folder)
    written = write_formats(findings, folder, formats)
    return [f"{path}  {FORMATS[name].what}" for path, name in zip(written, formats, strict=True)]


def _track(findings: Findings, wandb: Literal["off", "offline", "online"], folder: Path | None) -> None:
    if wandb == "off" or folder is None:
        return
    from experiments.report.tracking import track

    track(findings, wandb, folder)
    # What is printed may be a file to be.
    print(f"{folder / 'wandb'}  the report in W&B", file=sys.stderr)
