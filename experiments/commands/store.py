"""``mnemograph store``: build, search, check and change a store of vectors or of text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.commands.choice import positive

SUMMARY = "build, search, audit and change a store of vectors, or of text, on disk"
EXAMPLES = """\
  mnemograph store build my.store --keys keys.npy --values tokens.npy --documents docs.npy
  mnemograph store build code.store --text my_project/       every position of every file, found by what precedes it
  mnemograph store search code.store --text 'def main('
  mnemograph store search my.store --queries queries.npy --k 8 --out found.npz
  mnemograph store audit my.store                            recall, and entries that nobody finds
  mnemograph store info my.store --json

mnemograph store ACTION --help says more about each. What a store is, and when to use something else: docs/stores.md"""
ACTIONS = {
    "build": (
        "write a store from arrays or from text",
        """\
  mnemograph store build my.store --keys keys.npy --values tokens.npy --positions places.npy
  mnemograph store build my.store --keys all.safetensors     with tensors keys, values, documents, positions
  mnemograph store build my.store --keys keys.npy --factory auto --recall 0.95
  mnemograph store build my.store --keys keys.npy --factory IVF1024,SQ8 --metric l2 --replace
  mnemograph store build code.store --text my_project/ notes.md --vocab-size 4096

Arrays are read a piece at a time and are never in memory whole. Keys are floats [n, d]; values are whole numbers [n]
(token ids) or floats [n, d_value], by default the numbers of the rows. Of text, a document is a file, and an entry a
position in it: its key is made of the tokens up to there, its value is the next token.""",
    ),
    "add": (
        "append entries; all of them or, on an error, none",
        """\
  mnemograph store add my.store --keys more.npy --values more_tokens.npy
  mnemograph store add code.store --text another_project/""",
    ),
    "search": (
        "find the nearest entries of some queries, or of a text",
        """\
  mnemograph store search my.store --queries queries.npy --k 8
  mnemograph store search my.store --queries queries.npy --exclude own_docs.npy --visible-at places.npy --out found.npz
  mnemograph store search code.store --text 'def main(' --k 5
  mnemograph store search my.store --queries queries.npy --json --show 100""",
    ),
    "info": (
        "print what a store is",
        "  mnemograph store info my.store\n  mnemograph store info my.store --json",
    ),
    "verify": (
        "read every file and compare checksums; exit code 1 if one is damaged",
        "  mnemograph store verify my.store",
    ),
    "audit": (
        "measure recall against an exhaustive search, and look for entries that nobody finds",
        """\
  mnemograph store audit my.store
  mnemograph store audit my.store --queries queries.npy --k 8 --nprobe 32 --json""",
    ),
    "delete": (
        "take entries away by their ids, or whole documents",
        """\
  mnemograph store delete my.store --ids 17 18
  mnemograph store delete my.store --documents old_docs.npy
  mnemograph store delete code.store --documents src/old.py   and `compact` frees the space""",
    ),
    "compact": (
        "free the space of deleted entries and join small segments",
        "  mnemograph store compact my.store",
    ),
    "merge": (
        "append all entries of other stores, which stay as they are",
        "  mnemograph store merge all.store monday.store tuesday.store",
    ),
    "reindex": (
        "make the indexes anew, of the same kind or another; searches go on meanwhile",
        """\
  mnemograph store reindex my.store --factory IVF4096,SQ8
  mnemograph store reindex my.store --factory Flat            exact""",
    ),
}
WRITING = ("build", "add", "delete", "compact", "merge", "reindex")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", prog=parser.prog)
    for name, (summary, examples) in ACTIONS.items():
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        action.add_argument("path", type=Path, metavar="STORE", help="folder of the store")
        if name in _OPTIONS:
            _OPTIONS[name](action)
        if name in ("search", "info", "audit"):
            action.add_argument("--json", action="store_true", help="print JSON, for a program to read")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from experiments.commands import store_changes, store_reads
    from experiments.errors import RunError

    if arguments.action is None:
        raise RunError(f"store what? {', '.join(ACTIONS)}: mnemograph store build my.store --keys keys.npy")
    home = store_changes if arguments.action in WRITING else store_reads
    try:
        return getattr(home, arguments.action)(arguments)
    except KeyboardInterrupt:
        if arguments.action in WRITING:
            print(f"{arguments.path} is as it was before", file=sys.stderr)
        raise


def _entries(action: argparse.ArgumentParser) -> None:
    given = action.add_mutually_exclusive_group(required=True)
    given.add_argument("--keys", type=Path, metavar="FILE", help="floats [n, d], .npy or .safetensors")
    given.add_argument("--text", type=Path, nargs="+", metavar="PATH", help="text files, or folders of them")
    action.add_argument("--values", type=Path, metavar="FILE", help="what is found: [n] or [n, d_value]")
    action.add_argument("--documents", type=Path, metavar="FILE", help="number of each entry's document (0)")
    action.add_argument(
        "--positions", type=Path, metavar="FILE", help="what --visible-at is compared with (0)"
    )


def _build(action: argparse.ArgumentParser) -> None:
    _entries(action)
    action.add_argument(
        "--replace", action="store_true", help="though there is a store: the old one goes at the end"
    )
    kind = action.add_argument_group("kind of store")
    kind.add_argument("--metric", choices=("ip", "l2"), help="inner product (default) or squared distance")
    kind.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of stored keys (float16)"
    )
    kind.add_argument(
        "--factory",
        default="Flat",
        metavar="F",
        help="Flat (default, exact), a FAISS factory string such as IVF1024,SQ8, or auto: measured on a sample, the "
        "fastest that reaches --recall",
    )
    kind.add_argument("--encoder", metavar="NAME", help="name or fingerprint of what made the keys")
    kind.add_argument("--tokenizer", metavar="NAME", help="name or fingerprint of what made the token ids")
    auto = action.add_argument_group("with --factory auto")
    auto.add_argument(
        "--recall", type=_share, default=0.9, metavar="R", help="share to be found (default: 0.9)"
    )
    auto.add_argument(
        "--k", type=positive(int), default=32, metavar="K", help="neighbours wanted (default: 32)"
    )
    text = action.add_argument_group("with --text")
    text.add_argument(
        "--vocab-size", type=positive(int), default=2048, metavar="N", help="tokens to learn (2048)"
    )
    text.add_argument(
        "--depth", type=positive(int), default=12, metavar="N", help="tokens of context in a key (12)"
    )
    action.add_argument(
        "--memory-gb",
        type=positive(float),
        default=4.0,
        metavar="GB",
        help="memory to use at most (default: 4)",
    )


def _effort(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--nprobe",
        type=positive(int),
        metavar="N",
        help="lists to look into (default: what auto chose, or 8)",
    )
    action.add_argument(
        "--ef",
        type=positive(int),
        metavar="N",
        help="candidates in a graph (default: what auto chose, or 64)",
    )


def _search(action: argparse.ArgumentParser) -> None:
    asked = action.add_mutually_exclusive_group(required=True)
    asked.add_argument("--queries", type=Path, metavar="FILE", help="floats [n, d], .npy or .safetensors")
    asked.add_argument("--text", metavar="TEXT", help="in a store of text: what would follow this?")
    action.add_argument(
        "--k", type=positive(int), default=8, metavar="K", help="neighbours of each (default: 8)"
    )
    for name, what in (
        ("--exclude", "document whose entries a query must not be given, -1 for none"),
        ("--visible-at", "only entries whose position is smaller than this"),
        ("--own", "each query's own document: then --visible-at counts in it only"),
    ):
        action.add_argument(
            name, metavar="N|FILE", help=f"{what}; one number for all, or a file with one each"
        )
    _effort(action)
    action.add_argument(
        "--out", type=Path, metavar="FILE", help="write scores, ids, mask, values and so on (.npz)"
    )
    action.add_argument(
        "--show", type=positive(int), metavar="N", help="queries to print (3; with --json all)"
    )


def _audit(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--queries", type=Path, metavar="FILE", help="what to ask (default: some stored keys)"
    )
    action.add_argument(
        "--k", type=positive(int), default=32, metavar="K", help="neighbours of each (default: 32)"
    )
    action.add_argument(
        "--sample", type=positive(int), default=1000, metavar="N", help="entries to look at (1000)"
    )
    action.add_argument("--seed", type=int, default=0, metavar="N", help="of their choice (0)")
    _effort(action)


def _delete(action: argparse.ArgumentParser) -> None:
    which = action.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", nargs="+", metavar="N", help="numbers, or an .npy file of them")
    which.add_argument(
        "--documents", nargs="+", metavar="N", help="numbers, an .npy file of them; of text also names"
    )


def _merge(action: argparse.ArgumentParser) -> None:
    action.add_argument("others", type=Path, nargs="+", metavar="OTHER", help="stores of the same kind")
    action.add_argument(
        "--documents",
        choices=("apart", "same"),
        default="apart",
        help="apart: labels of each store are raised, so that no document is taken for one of another store (default); "
        "same: labels stay, where all stores number the documents of one collection",
    )


def _reindex(action: argparse.ArgumentParser) -> None:
    action.add_argument("--factory", metavar="F", help="Flat or a FAISS factory string (default: what it is)")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1, such as 0.9")
    return value


_OPTIONS = {
    "build": _build,
    "add": _entries,
    "search": _search,
    "audit": _audit,
    "delete": _delete,
    "merge": _merge,
    "reindex": _reindex,
}
