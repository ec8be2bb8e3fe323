"""The part of the page that says how tables of memories are used, and how far their gates are open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.frontier.cells import Table, budget_key
from experiments.report.markup import Markup, join, table, tag

TABLES = (
    "Share of a table's rows read at least once on held-out text; how far reading is from even, in nats (0: all rows "
    "alike); the share of reads that the most read hundredth of rows has. With its rows in another order a memory that "
    "matters makes the model worse; one that does not is read as a bias."
)
GATES = (
    "How far the gates between a memory and the network are open on held-out text, from 0 to 1: their mean, the shares "
    "that are nearly shut and nearly open, and the distribution in twentieths. A memory whose gates shut is one that "
    "the network has learned to look away from."
)
BARS = " ▁▂▃▄▅▆▇█"


def health(results: Table) -> Markup:
    """How tables are used and gates opened; nothing where no arm has any."""
    return join([_tables(results), _gates(results)])


def _cells(results: Table) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Name and budget, and the first row, of what was trained."""
    for cell in (cell for name in results.names for cell in results.of(name) if not cell.derived):
        yield [cell.name, budget_key(cell.budget)], cell.runs[0]


def _gates(results: Table) -> Markup:
    body = [
        [
            *labels,
            name,
            f"{told['mean']:.2f}",
            f"{told['shut']:.0%}",
            f"{told['open']:.0%}",
            _bars(told["histogram"]),
        ]
        for labels, row in _cells(results)
        for name, told in ((row.get("probes") or {}).get("gates") or {}).items()
    ]
    if not body:
        return Markup("")
    head = ["arm", "budget", "gate", "mean", "shut", "open", "0 to 1"]
    shown = table(head, body, caption="Of the first seed.", numeric=range(3, 6))
    return join([tag("h2", "How far gates are open"), tag("p", GATES), shown])


def _bars(shares: list[float]) -> str:
    most = max(shares, default=0) or 1
    return "".join(BARS[round(share / most * (len(BARS) - 1))] for share in shares)


def _tables(results: Table) -> Markup:
    """How each table is used, and what shuffling its rows costs."""
    body = []
    for labels, row in _cells(results):
        probes = row.get("probes") or {}
        for number, (name, told) in enumerate((probes.get("tables") or {}).items()):
            whole = row["losses"]["test"]["nats_per_token"]
            cost = probes["shuffled"]["nats_per_token"] - whole
            body.append(
                [
                    *labels,
                    name,
                    f"{told['used']:.1%}",
                    f"{told['kl_to_uniform']:.2f}",
                    f"{told['top_percent']:.1%}",
                    "" if number else f"{cost:+.3f}",
                ]
            )
    if not body:
        return Markup("")
    head = ["arm", "budget", "table", "rows used", "KL to uniform", "top 1 %", "rows shuffled"]
    caption = (
        "Of the first seed; last column: nats per token lost on test with the rows of all tables shuffled."
    )
    return join(
        [
            tag("h2", "How tables are used"),
            tag("p", TABLES),
            table(head, body, caption=caption, numeric=range(3, 7)),
        ]
    )
