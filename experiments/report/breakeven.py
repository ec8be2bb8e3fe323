"""After how many served tokens a store has paid for its own building."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.frontier.cells import Cell, Table
from experiments.report.marks import KNOCKOUT
from experiments.report.units import amount

NONE = "none"
ENDS = ("multiplier", "low", "high")


def break_even(results: Table, summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    r"""What serving needs to know of every arm that builds a store, at every budget.

    .. math:: N = \frac{B}{r_\text{dense} - r} = \frac{B}{(m - 1)\, r}

    *B* is what building cost (``flops["build"]``), *r* the arm's inference FLOPs per token, search included, and
    :math:`r_\text{dense} = m\, r` those of dense at the arm's loss, *m* being the multiplier on inference FLOPs. At
    *N* served tokens ``B + N r`` equals ``N r_dense``; where *m* is 1 or less there is no such *N*. The rest of the
    training bill is put aside on both sides. Ends are those of the interval of *m*: *B* and *r* hardly differ by seed.

    Args:
        results: the grouped rows.
        summary: what :func:`experiments.frontier.summarize` made of them.

    Returns:
        ``[NAME][BUDGET]``: ``build_flops``, ``parts`` (of the building, where the rows name them), ``read_flops``
        and, against ``tuned`` dense and dense trained for ``any_budget``, the FLOPs saved per token
        (``saved_flops``, ``low``, ``high``, and ``bound`` and ``beyond`` as a multiplier has them).
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in results.names:
        for cell, (budget, entry) in zip(results.of(name), summary["arms"][name].items(), strict=True):
            total, parts = _build(cell)
            # What is worth nothing without its memory serves nobody.
            if total <= 0 or KNOCKOUT in name or "read_flops" not in entry:
                continue
            read = float(cell.amounts("read_flops").mean())
            ratios = {"tuned": entry["read_flops"], "any_budget": entry["read_flops"].get("any_budget")}
            found.setdefault(name, {})[budget] = {
                "build_flops": total,
                "parts": parts,
                "read_flops": read,
                **{key: _saved(read, ratio) for key, ratio in ratios.items() if ratio},
            }
    return found


def tokens_text(build_flops: float, saved: Mapping[str, Any] | None) -> str:
    """``4.20 M [3.10 M, none]``: served tokens at which building has paid; ``none`` where it never does."""
    if saved is None or saved["saved_flops"] is None:
        return "no number"
    point, low, high = saved["saved_flops"], saved["low"], saved["high"]
    if saved["beyond"] == "point":
        # Dense was not measured further: at least this much is saved, or at most.
        if saved["bound"] == "at least":
            fewest = point if low is None else min(low, point)
            return f"at most {_tokens(build_flops, fewest)}" if fewest > 0 else "not known"
        most = point if high is None else max(high, point)
        return f"at least {_tokens(build_flops, most)}" if most > 0 else NONE
    if low is None and high is None:
        return (
            f"{_tokens(build_flops, point)} (no interval)"
            if not saved["bound"]
            else _tokens(build_flops, point)
        )
    # What saves most pays first; where nothing is saved, saving less changes nothing.
    low = point if low is None and point <= 0 else low
    ends = ["open" if end is None else _tokens(build_flops, end) for end in (high, low)]
    return NONE if ends == [NONE, NONE] else f"{_tokens(build_flops, point)} [{', '.join(ends)}]"


def _tokens(build_flops: float, saved_flops: float) -> str:
    return amount(build_flops / saved_flops, "").strip() if saved_flops > 0 else NONE


def _saved(read_flops: float, ratio: Mapping[str, Any]) -> dict[str, Any]:
    saved = [None if ratio[end] is None else (ratio[end] - 1) * read_flops for end in ENDS]
    names = ("saved_flops", *ENDS[1:])
    return dict(zip(names, saved, strict=True)) | {key: ratio[key] for key in ("bound", "beyond")}


def _build(cell: Cell) -> tuple[float, dict[str, float]]:
    """Mean over seeds of what building cost, and of its parts; what has no name (counts) is no part."""
    count = len(cell.runs)
    total = sum((row.get("flops") or {}).get("build", 0) for row in cell.runs) / count
    keys = dict.fromkeys(key for row in cell.runs for key in row.get("build") or {})
    parts = {key: sum((row.get("build") or {}).get(key, 0) for row in cell.runs) / count for key in keys}
    return total, {key: value for key, value in parts.items() if value}
