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
  transcendental function included; a comparison that yields true or false is 0, one that yields a number is 1. A
  complex number is two numbers: a sum is 2, a product 6, a multiply-add 8, any other function of one still 1.
* **The same mathematics has the same FLOPs**, however it is spelled: `einsum`, multiply-and-sum and `embedding_bag`
  agree. `matmul_flops` is the part done by matrix products, convolutions and attention, and so follows the spelling.
* **Attention** is billed by the query-key pairs that live: half of them if causal, those a mask lets through if
  there is a mask. `torch.nn.functional.scaled_dot_product_attention` costs the same in every kernel, if called by
  that name: a reference imported before the ledger opened is billed kernel by kernel. Attention spelled out in matrix
  products is billed as spelled. FlexAttention is billed by the pairs its mask function lets through, each with what
  its score function does to one score.
* **The meta device** has shapes and no values, so a mask there lets everything through: all pairs of attention live,
  all elements are selected, no edge is dropped. Whatever does not depend on values has one bill on every device.
* **Backward** is billed as computed, except that scores a fused attention kernel recomputes are not billed twice. What
  activation checkpointing computes again is billed again, as the phase "recompute": `flops` is what is done,
  `needed_flops` what the model needs.
* **Dropout is free**, so that training and evaluation have one bill.
* **Sparse** operands are billed by their stored entries; where both are sparse, by the pairs of entries that meet.
* **Linear algebra** is billed by the leading terms of the textbook's algorithm. Singular values and eigenvalues alone
  are billed with their vectors: gradients need them, and torch computes them whenever it is watched. Complex matrices
  cost four times as much as real ones.
* **Compiled functions** run uncompiled while a ledger is open, and are as fast as before once it is closed. Function
  transforms (`vmap`, `grad`, `jvp`) and control flow (`cond`, `while_loop`, `scan`) cost what their functions do.
* **Kernels** that do several steps at once are billed for the steps, so that they agree with the same steps spelled
  out. What differs is what torch does differently: an RNN projects all its inputs at once on CPU and step by step
  elsewhere, so that its backward sums gradients of weights over time; its own dropout between layers is billed;
  an LSTM on CPU always computes gradients of its first state; `InstanceNorm` with running statistics averages them in
  training; `foreach` forms of RAdam, ASGD and Rprop do more operations than their loops. Bytes follow the operators
  that run: without gradients torch fuses and copies less.
* **Bytes** are those of the tensors read and written, as if nothing were fused or cached: an upper bound. An
  expanded dimension is read once; a gather reads the rows it is asked for, not the table. `bytes_random` is the part
  of both at places that the data decide: rows of gathers and scatters, what a sparse operand points at, entries of a
  search. Such bytes come slower than those in a row.
* Searches and other operators from outside torch are priced by the formula registered beside them
  (`torch.utils.flop_counter.register_flop_formula`); its attribute `bytes_formula`, if present, gives the bytes
  `(read, written, random)`, and `billed_as` the name of the operator whose place it takes on some devices. Where the
  work depends on the data, `so_far` returns what all calls have cost together, `(flops, read, written, random)`:
  `LedgerCallback` reads it every step, watched or not.
* `experiments/ledger/golden.json` lists calls whose cost is known in closed form, each with the code that makes it,
  to test this or any other counter with.
* [What a processor executes](executed.md) for the same work, counted by emulation, stands on a page of its own.
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
