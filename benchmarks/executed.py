"""The ledger against the processor: FLOPs billed beside floating-point operations executed.

    OMP_NUM_THREADS=1 python -m benchmarks.executed --json docs/results/executed.json --markdown docs/executed.md

Needs ``valgrind`` and the Python package ``capstone``. One process runs every case under Valgrind, first billed by the
ledger, then watched; :mod:`benchmarks.instructions` says what counts as an operation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PACKAGES = {"torch": "torch", "pyg": "torch_geometric", "faiss": "faiss-cpu", "capstone": "capstone"}
_INTRODUCTION = """\
# Billed and executed

This page is written by `benchmarks/executed.py` from `docs/results/executed.json`.

The [ledger](counting.md) bills what the mathematics asks for. Here is what a processor executes for it: the same
work is run under Valgrind's Callgrind, which counts how often each instruction runs; each is decoded, and one that
computes counts once for every lane of its register, a fused multiply-add twice. Comparisons, conversions and moves
count nothing, maximum and minimum one, as in the ledger. Code compiled at run time (`embedding_bag`, `gelu`) is read
from the memory of the process. The interpreter around the work adds a few operations, a hundred at most. *stated* is
the range a case must stay in; `tests/benchmarks/test_executed.py` measures some of them again.

    python -m benchmarks.executed --json docs/results/executed.json --markdown docs/executed.md

Where the two differ, it is for one of these reasons:

* **A transcendental function is billed as 1** and executed as a polynomial: 18 operations for `exp`, 39 for `gelu`
  (billed 5), 116 for its tanh form. So softmax executes five times its bill by itself, and attention, of which it is
  a small part, about a seventh more than its bill.
* **A kernel may do work that the mathematics does not need.** Causal attention is billed for the pairs that live, but
  the kernel computes whole blocks: all pairs of 256 positions. It computes scores again in backward. A matrix product
  whose side is no multiple of the register computes the padding too; with a side of 1 that is most of it.
* **Sums across a register** take a few operations more than there are elements: 12 for each pair of vectors in FAISS.
* **A fused multiply-add may stand for an addition**: `a + b` runs as `1 * b + a`, three operations where two are billed
  for `x * 3 + x`.
* **A kernel may do less**: squared distances of all pairs are norms and one matrix product, 2d for a pair and not 3d.
  k-means stops early when nothing moves, and all its rounds are billed.

What this does not show:

* Valgrind {valgrind} emulates AVX2, so kernels for AVX-512, which the same machine runs otherwise, do not run here.
  They do the same arithmetic on wider registers: what they pad and what sums across a register cost differs.
* Integer arithmetic is not counted, except in the sums of 4-bit codes, which the ledger bills (names with `fs`); nor
  are bit operations, by which signs are changed and absolute values taken (billed as 1 an element).
* Another processor may make the libraries choose other kernels. These are one thread of torch {torch}, PyG {pyg} and
  FAISS {faiss} on random numbers in single precision.
"""


def missing() -> str:
    """What this machine lacks to count executed instructions, with how to get it; empty if it lacks nothing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "executed instructions are counted on x86_64 Linux only"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed: apt-get install valgrind"
    try:
        import capstone  # noqa: F401
    except ImportError:
        return "capstone is not installed: pip install capstone"
    return ""


def measure(names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of the table, as they are measured.

    Args:
        names: Which cases, as ``"group: name"``; all of them by default.

    Raises:
        RuntimeError: If something needed is missing, or a case fails.
    """
    from benchmarks.instructions import Reader, valgrind_command

    if lacking := missing():
        raise RuntimeError(lacking)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        command = [
            *valgrind_command(profile),
            sys.executable,
            "-m",
            "benchmarks.executed",
            "--watched",
            *names,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            reader = Reader(child.pid)
            for number, line in enumerate(child.stdout, 1):
                row = json.loads(line)
                written = Path(f"{profile}.{number}")
                executed = reader.count(written)
                written.unlink()
                child.stdin.write("\n")
                child.stdin.flush()
                operations = executed.flops + (executed.integer_additions if row.pop("integers") else 0)
                row |= {"executed": operations, "ratio": round(operations / row["billed"], 4)}
                yield row
        if child.returncode:
            raise RuntimeError(f"the watched process ended with {child.returncode}; its error is above")


def watched(names: Sequence[str]) -> None:
    """Run the cases and say after each what it was billed; goes on when a line comes in."""
    import torch

    from benchmarks.executed_cases import bill, cases
    from benchmarks.instructions import start, stop

    known = {f"{case.group}: {case.name}": case for case in cases()}
    if unknown := [name for name in names if not any(one.startswith(name) for one in known)]:
        raise SystemExit(f"no case {unknown[0]!r}; there are: {'; '.join(known)}")
    torch.set_num_threads(1)
    for case in (case for name, case in known.items() if name.startswith(tuple(names or [""]))):
        torch.manual_seed(0)
        work = case.setup()
        row = {"group": case.group, "case": case.name, "billed": bill(work), "integers": case.integers}
        start()
        work()
        stop()
        print(json.dumps(row), flush=True)
        sys.stdin.readline()


def page(table: dict[str, Any]) -> str:
    """docs/executed.md from the table that :func:`main` writes."""
    parts = [_INTRODUCTION.format(**table["made_with"])]
    for group, rows in groupby(table["rows"], key=lambda row: row["group"]):
        lines = [
            f"| {row['case']} | {row['billed']:,} | {row['executed']:,} | {row['ratio']:.3f} "
            f"| {row['within'][0]:g} to {row['within'][1]:g} | {row['note']} |"
            for row in rows
        ]
        head = [
            "| case | billed | executed | executed / billed | stated | why |",
            "|---|--:|--:|--:|--:|---|",
        ]
        parts.append("\n".join([f"## {group}\n", *head, *lines]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="CASE", help="the beginning of 'group: case'; all by default"
    )
    parser.add_argument("--json", type=Path, help="write the table there; rows of cases not run now stay")
    parser.add_argument("--markdown", type=Path, help="write the page there, from what is in --json")
    parser.add_argument("--no-run", action="store_true", help="run nothing: only write the page")
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watched:
        watched(arguments.names)
        return
    if (arguments.markdown or arguments.no_run) and not arguments.json:
        parser.error("--markdown and --no-run need --json FILE, the table to read")
    if not arguments.no_run and (lacking := missing()):
        parser.error(lacking)
    rows = []
    for row in [] if arguments.no_run else measure(arguments.names):
        rows.append(row)
        name = f"{row['group']}: {row['case']}"
        print(f"{name:100s} {row['billed']:14,} {row['executed']:14,} {row['ratio']:8.3f}", flush=True)
        if arguments.json:
            _write(arguments.json, rows)
    if arguments.markdown:
        _write(arguments.json, rows)
        arguments.markdown.write_text(page(json.loads(arguments.json.read_text("utf-8"))), encoding="utf-8")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into the table, in the order of the cases; what is expected of a case is as the cases say now."""
    from benchmarks.executed_cases import cases

    table: dict[str, Any] = {"rows": []}
    if path.exists():
        table = json.loads(path.read_text(encoding="utf-8"))
    found = {(row["group"], row["case"]): row for row in [*table["rows"], *rows]}
    if rows:
        table["made_with"] = _made_with()
    table["rows"] = [
        found[case.group, case.name] | {"within": case.within, "note": case.note}
        for case in cases()
        if (case.group, case.name) in found
    ]
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _made_with() -> dict[str, str]:
    versions = {name: version(package) for name, package in _PACKAGES.items()}
    told = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout
    return {"valgrind": told.strip().removeprefix("valgrind-")} | versions


if __name__ == "__main__":
    main()
