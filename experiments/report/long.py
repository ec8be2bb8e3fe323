"""Every number of the report in long form, for pandas and R: one line an arm, budget and axis."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.frontier.decisions import counts_decision, decide, decision_on, has_interval
from experiments.frontier.verdict import reference

EVERYTHING = "every operator, search and building; causal attention: pairs multiplied, in blocks of 64"
PRODUCTS = "matrix products, search and building; causal attention: pairs multiplied, in blocks of 64"
COLUMNS: tuple[str, ...] = (
    "study",
    "corpus",
    "arm",
    "regime",
    "control",
    "budget_flops",
    "width",
    "seeds",
    "axis",
    "convention",
    "against",
    "amount",
    "multiplier",
    "low",
    "high",
    "bound",
    "beyond",
    "p",
    "p_corrected",
    "decision",
    "bits_per_byte",
    "bits_per_byte_low",
    "bits_per_byte_high",
    "bits_per_byte_over_seeds_low",
    "bits_per_byte_over_seeds_high",
    "gain_over_counts",
    "gain_over_counts_low",
    "gain_over_counts_high",
    "gain_over_counts_p",
    "gain_over_counts_p_corrected",
    "gain_over_counts_decision",
    "caution",
)


def long_csv(summary: Mapping[str, Any]) -> str:
    """The summary as CSV; an empty field is a number that is not there.

    Training FLOPs have a line for each convention, inference FLOPs one against the dense frontier and one against dense
    trained for any budget; ``bound`` and ``beyond`` are those of
    :class:`~experiments.frontier.multiplier.Multiplier`. ``p_corrected`` is told for claims on training FLOPs.
    ``bits_per_byte_low`` and ``_high`` are the ends of the interval that all others are over too (seeds, and documents
    where the runs tell them), ``bits_per_byte_over_seeds_low`` and ``_high`` those that every other format shows.
    ``caution`` says what is to be held against the seconds.

    Args:
        summary: as :func:`experiments.frontier.summarize` builds it.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(summary))
    return file.getvalue()


def lines(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of :func:`long_csv` as plain values."""
    for name, budgets in summary["arms"].items():
        for budget, entry in budgets.items():
            common = {
                "study": summary["study"],
                "corpus": summary["fingerprint"],
                "arm": name,
                "regime": entry["regime"],
                "control": entry["control"],
                "budget_flops": float(budget),
                "width": entry["width"],
                "seeds": len(entry["seeds"]),
                **_interval("bits_per_byte", entry["bits_per_byte"]),
                **_ends("bits_per_byte_over_seeds", entry["bits_per_byte"]["over_seeds"]),
                **_gain(entry),
            }
            for line in _of_axes(summary, entry):
                yield common | line


def _of_axes(summary: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for axis in summary["axes"]:
        if axis not in entry:
            continue
        counted = axis.endswith("flops")
        line = {
            "axis": axis,
            "convention": EVERYTHING if counted else "",
            "against": reference(summary),
            "amount": entry["amounts"].get(axis),
            "caution": summary["cautions"].get(axis, ""),
        }
        yield line | _compared(entry[axis], decision_on(entry, axis))
        if axis == "train_flops":
            products, shown = entry["matmul_flops"], decide(entry["matmul_flops"], has_interval(entry))
            yield line | {"convention": PRODUCTS, "amount": None} | _compared(products, shown)
        for key, against in (("any_budget", "dense of any budget"), ("any_width", "dense of any width")):
            if (strict := entry[axis].get(key)) is not None:
                yield line | {"against": against} | _compared(strict, decide(strict, has_interval(entry)))


def _compared(cell: Mapping[str, Any], decision: str) -> dict[str, Any]:
    found = {key: cell[key] for key in ("multiplier", "low", "high", "bound", "beyond", "p")}
    return found | {"p_corrected": cell.get("p_holm"), "decision": decision}


def _gain(entry: Mapping[str, Any]) -> dict[str, Any]:
    gain = entry["gain_over_counts"]
    return {
        **_interval("gain_over_counts", gain),
        "gain_over_counts_p": gain and gain["p"],
        "gain_over_counts_p_corrected": gain and gain["p_holm"],
        "gain_over_counts_decision": gain and counts_decision(entry),
    }


def _interval(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    given = value or {"mean": None, "low": None, "high": None}
    return {name: given["mean"], **_ends(name, given)}


def _ends(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_low": given["low"], f"{name}_high": given["high"]}
