"""Findings to files, all of them or none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.frontier.cells import Row
from experiments.report.findings import Findings, find
from experiments.report.formats import FORMATS, USUAL


def write_formats(
    findings: Findings, out_dir: str | os.PathLike[str], formats: Iterable[str] = USUAL
) -> list[Path]:
    """Write a report in some formats; each file is renamed into its place after all of them are complete.

    Args:
        findings: what the report says.
        out_dir: where the files go; made where it does not exist.
        formats: keys of :data:`~experiments.report.formats.FORMATS`.

    Returns:
        The files, in the order of the formats.
    """
    folder = Path(out_dir)
    contents = {FORMATS[name].file: FORMATS[name].to_bytes(findings) for name in formats}
    folder.mkdir(parents=True, exist_ok=True)
    beside = {folder / name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for temporary, content in zip(beside.values(), contents.values(), strict=True):
            temporary.write_bytes(content)
        for path, temporary in beside.items():
            os.replace(temporary, path)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
    return list(beside)


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

    Works with part of a study and with one seed; the report says what is missing.

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
    findings = find(
        rows, corpus=corpus, audit=audit, command=command, question=question, allow_mixed=allow_mixed
    )
    write_formats(findings, out_dir)
    return findings.summary
