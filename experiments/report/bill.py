"""The parts of the page that speak of cost, settings and origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.frontier.cells import Cell, Row, Table, budget_key
from experiments.frontier.verdict import reference
from experiments.report.explain import COUNTING, INTEGERS
from experiments.report.markup import Markup, definitions, join, table, tag
from experiments.report.units import amount, seconds, share

PHASES = ("forward", "backward", "optimizer", "search", "build")
OPERATORS = 8


def bill(results: Table) -> Markup:
    """What each arm was billed for, by phase, and its dearest operators."""
    cells = [cell for name in results.names for cell in results.of(name)]
    parts = [tag("h2", "Bill"), tag("p", "Mean over seeds, for the width that is compared.", class_="note")]
    for unit, column, title in (("FLOP", "flops", "FLOPs"), ("B", "bytes", "Bytes moved")):
        body = []
        for cell in cells:
            phases = _mean_of(row.get(column, {}) for row in cell.runs)
            total = sum(phases.values())
            body.append(
                [
                    cell.name,
                    budget_key(cell.budget),
                    amount(total, unit),
                    *(share(phases.get(p, 0), total) for p in PHASES),
                ]
            )
        head = ["arm", "budget", "total", *PHASES]
        parts.append(table(head, body, caption=f"{title} by phase.", numeric=range(1, 8)))
        if unit == "FLOP":
            parts.append(_integers(cells))
    body = [
        [
            cell.name,
            budget_key(cell.budget),
            *(seconds(times.get(part)) for part in ("train", "build", "search", "evaluate")),
        ]
        for cell in cells
        if (times := _mean_of(row.get("seconds", {}) for row in cell.runs))
    ]
    caption = "Seconds; evaluating is not part of the bill."
    parts.append(
        table(
            ["arm", "budget", "train", "build", "search", "evaluate"],
            body,
            caption=caption,
            numeric=range(1, 6),
        )
    )
    parts.append(
        tag("details", tag("summary", "By operator, and by module"), *(_operators(cell) for cell in cells))
    )
    return join(parts)


def _integers(cells: Sequence[Cell]) -> Markup:
    """How much of searching is arithmetic on integers, where the rows tell it."""
    shares = []
    for cell in cells:
        search = _mean_of(row.get("search") or {} for row in cell.runs)
        if search.get("intops") and not cell.derived:
            told = share(search["intops"], search["flops"])
            shares.append(f"{cell.name} at {budget_key(cell.budget)} {told}")
    return tag("p", f"{INTEGERS} {'; '.join(shares)}.", class_="note") if shares else Markup("")


def _operators(cell: Cell) -> Markup:
    parts = [tag("h3", f"{cell.name}, {budget_key(cell.budget)}")]
    for column, what in (("by_operator", "operators"), ("by_module", "modules")):
        flops = _mean_of(row.get(column, {}) for row in cell.runs)
        ranked = sorted(flops.items(), key=lambda item: (-item[1], item[0]))[:OPERATORS]
        if ranked:
            total = cell.amounts("train_flops").mean()
            body = [[tag("code", name), amount(value, "FLOP"), share(value, total)] for name, value in ranked]
            head = [what, "FLOPs", "of the bill"]
            parts.append(table(head, body, caption=f"The dearest {what}.", numeric=(1, 2)))
    return join(parts)


def settings(results: Table) -> Markup:
    """Settings of each arm that is compared, sizes, and how many trials each had."""
    body = []
    for name in results.names:
        for cell in results.of(name):
            row = cell.runs[0]
            params = row.get("params", {})
            given = {key: value for key, value in row.get("settings", {}).items() if not _is_trials(key)}
            body.append(
                [
                    name,
                    budget_key(cell.budget),
                    f"{cell.width} x {row.get('layers', '-')}",
                    amount(row.get("tokens"), ""),
                    row.get("steps", "-"),
                    amount(params.get("active"), ""),
                    amount(params.get("table"), ""),
                    _trials(row) or "-",
                    tag("code", ", ".join(f"{key}={value}" for key, value in sorted(given.items())) or "-"),
                ]
            )
    head = [
        "arm",
        "budget",
        "width x layers",
        "tokens",
        "steps",
        "active parameters",
        "in tables",
        "trials",
        "settings",
    ]
    counts = {
        _trials(row) for cell in results.cells if not cell.derived and not cell.control for row in cell.runs
    } - {None, 0}  # 0: nobody tried settings there
    note = (
        "Arms had different numbers of tuning trials ("
        + ", ".join(map(str, sorted(counts, key=str)))
        + "): an arm that was tried more often has an edge that is not its own."
    )
    return join(
        [
            tag("h2", "Settings and tuning"),
            tag("p", note, class_="warning") if len(counts) > 1 else "",
            table(
                head, body, caption="Of the first seed; seeds differ in nothing else.", numeric=range(1, 8)
            ),
        ]
    )


def corpus_and_audit(corpus: Mapping[str, Any] | None, audit: Mapping[str, Any] | None) -> Markup:
    """What the text is, and how much of the held-out text occurs in the training text."""
    missing = (
        "The overlap of held-out with training text was not audited, so no gain here is safe from leakage."
    )
    return join(
        [
            tag("h2", "Corpus and overlap"),
            definitions(corpus) if corpus else tag("p", "No description of the corpus was given."),
            tag("h3", "Overlap of held-out with training text"),
            definitions(audit) if audit else tag("p", missing, class_="warning"),
        ]
    )


def counting(summary: Mapping[str, Any]) -> Markup:
    """How we count."""
    texts = [text.format(reference=reference(summary)) for text in COUNTING]
    return join([tag("h2", "How we count"), *(tag("p", text) for text in texts)])


def origin(results: Table, command: str) -> Markup:
    """Where the numbers come from and the command that gives them again."""
    rows = [row for cell in results.cells for row in cell.runs]
    started = sorted(str(row["started"]) for row in rows if row.get("started"))
    facts: dict[str, Any] = {
        "command": tag("pre", command),
        "code revision": list(results.revisions),
        "corpus fingerprint": tag("code", results.fingerprint),
        "runs started": f"{started[0]} to {started[-1]}" if started else "not recorded",
        "precision": _precisions(rows),
        "versions": _versions(rows),
    }
    entries = [part for key, value in facts.items() for part in (tag("dt", key), tag("dd", _shown(value)))]
    return join([tag("h2", "To do it again"), tag("dl", *entries)])


def _shown(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def _precisions(rows: Sequence[Row]) -> str:
    found = {str(row.get("settings", {}).get("precision", "not recorded")) for row in rows}
    apart = " (runs of the two differ in their arithmetic)" if len(found) > 1 else ""
    return " and ".join(sorted(found)) + apart


def _versions(rows: Sequence[Row]) -> str:
    seen: dict[str, dict[str, None]] = {}
    for row in rows:
        for package, version in row.get("versions", {}).items():
            seen.setdefault(str(package), {})[str(version)] = None
    return (
        ", ".join(f"{package} {' and '.join(versions)}" for package, versions in sorted(seen.items()))
        or "not recorded"
    )


def _mean_of(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key; a run that lacks one spent nothing on it."""
    given = list(parts)
    keys = dict.fromkeys(key for part in given for key in part)
    return {key: sum(part.get(key, 0) for part in given) / len(given) for key in keys}


def _is_trials(key: str) -> bool:
    return "trial" in key.lower()


def _trials(row: Row) -> Any:
    return next((value for key, value in row.get("settings", {}).items() if _is_trials(key)), None)
