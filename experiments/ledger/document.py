"""docs/counting.md, written from the prices themselves."""

from __future__ import annotations

from experiments.ledger.price import Price
from experiments.ledger.prices import SECTIONS

_INTRODUCTION = """\
# How work is counted

This page is written by `experiments/ledger/document.py` from the prices the ledger uses.

`Ledger` sees every operator that torch runs and looks up its price. There are three answers: a price below, free by
a rule below, or an `UnpricedOperator` error that names the operator, the module and the line. Nothing is skipped.

* A multiply-add is **2 FLOPs**. Any other arithmetic operation is 1 an output element, whatever the type, a
  transcendental function included; a comparison that yields true or false is 0, one that yields a number is 1.
* **The same mathematics has the same FLOPs**, however it is spelled: `einsum`, multiply-and-sum and `embedding_bag`
  agree. `matmul_flops` is the part done by matrix products, convolutions and attention, and so follows the spelling.
* **Attention** is billed by the query-key pairs that live: half of them if causal, those a mask lets through if
  there is a mask. `torch.nn.functional.scaled_dot_product_attention` costs the same in every kernel, if called by
  that name: a reference imported before the ledger opened is billed kernel by kernel. A mask on the meta device has
  no values, so all its pairs are billed. Attention spelled out in matrix products is billed as spelled.
* **Backward** is billed as computed, except that scores a fused attention kernel recomputes are not billed twice. What
  activation checkpointing computes again is billed again, as the phase "recompute": `flops` is what is done,
  `needed_flops` what the model needs.
* **Dropout is free**, so that training and evaluation have one bill.
* **Sparse** operands are billed by their stored entries.
* **Bytes** are those of the tensors read and written, as if nothing were fused or cached: an upper bound. An
  expanded dimension is read once; a gather reads the rows it is asked for, not the table. `bytes_random` is the part
  of both at places that the data decide: rows of gathers and scatters, what a sparse operand points at, entries of a
  search. Such bytes come slower than those in a row.
* Searches and other operators from outside torch are priced by the formula registered beside them
  (`torch.utils.flop_counter.register_flop_formula`); its attribute `bytes_formula`, if present, gives the bytes
  `(read, written, random)`, and `billed_as` the name of the operator whose place it takes on some devices. Where the
  work depends on the data, `so_far` returns what all calls have cost together, `(flops, read, written, random)`:
  `LedgerCallback` reads it every step, watched or not.
* Nothing is billed that runs in another thread or outside torch: bill that with `Ledger.add`.

A name stands for its in-place form and for all overloads. *inputs* and *outputs* are numbers of elements; in the
column of bytes they are sizes.
"""


def counting_markdown() -> str:
    """The page: the rules, then one table a section, operators with the same price in one row."""
    parts = [_INTRODUCTION]
    for title, prices in SECTIONS.items():
        rows: dict[tuple[str, str, str], list[str]] = {}
        for name, price in prices.items():
            rows.setdefault(_cells(price), []).append(f"`{name.removeprefix('aten.')}`")
        lines = [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items()]
        parts.append(
            "\n".join([f"## {title}\n", "| operator | FLOPs | bytes | rule |", "|---|---|---|---|", *lines])
        )
    parts.append("Any other operator whose schema says that it returns a view is free.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cells(price: Price) -> tuple[str, str, str]:
    flops, moved, because = (
        text.replace("|", "\\|") for text in (price.flops.text, price.bytes.text, price.because)
    )
    return flops, moved, because
