"""Rows to files: summary.json, frontier.png and report.html, all three or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.frontier import answer, summarize, tabulate, verdict
from experiments.frontier.cells import Row
from experiments.report.figure import draw, to_bytes
from experiments.report.page import page


def write_report(
    rows: Iterable[Row],
    out_dir: str | os.PathLike[str],
    *,
    corpus: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    command: str,
    question: str | None = None,
    allow_mixed: bool = False,
) -> dict[str, Any]:
    """Summarize the rows of a study and write ``summary.json``, ``frontier.png`` and ``report.html``.

    Works with part of a study and with one seed; the report says what is missing. Each file is written beside
    its place and renamed, after all three are complete.

    Args:
        rows: one mapping a run.
        out_dir: where the files go; made where it does not exist.
        corpus: the corpus's description of itself.
        audit: how much of the held-out text occurs in the training text.
        command: what reproduces the results.
        question: the study's question; a general one by default.
        allow_mixed: accept rows of several code revisions.

    Returns:
        The summary, as written.

    Raises:
        ResultsError: when the rows cannot be compared; nothing is written then.
    """
    given = list(rows)
    results = tabulate(given, allow_mixed=allow_mixed)
    summary = summarize(given, allow_mixed=allow_mixed)
    summary |= {"answer": answer(summary), "verdict": verdict(summary)}
    text = page(summary, results, corpus=corpus, audit=audit, command=command, question=question)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "summary.json": (json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "frontier.png": to_bytes(draw(summary), "png"),
        "report.html": text.encode(),
    }
    beside = {folder / name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for temporary, content in zip(beside.values(), contents.values(), strict=True):
            temporary.write_bytes(content)
        for path, temporary in beside.items():
            os.replace(temporary, path)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
    return summary
