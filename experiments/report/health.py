"""The part of the page that says how tables of memories are used."""

from __future__ import annotations

from experiments.frontier.cells import Table, budget_key
from experiments.report.markup import Markup, join, table, tag

TABLES = (
    "Share of a table's rows read at least once on held-out text; how far reading is from even, in nats (0: all rows "
    "alike); the share of reads that the most read hundredth of rows has. With its rows in another order a memory that "
    "matters makes the model worse; one that does not is read as a bias."
)


def health(results: Table) -> Markup:
    """How each table is used, and what shuffling its rows costs; nothing where no arm has one."""
    body = []
    for cell in (cell for name in results.names for cell in results.of(name) if not cell.derived):
        row = cell.runs[0]
        probes = row.get("probes") or {}
        for number, (name, told) in enumerate((probes.get("tables") or {}).items()):
            whole = row["losses"]["test"]["nats_per_token"]
            cost = probes["shuffled"]["nats_per_token"] - whole
            body.append(
                [
                    cell.name,
                    budget_key(cell.budget),
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
