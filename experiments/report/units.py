"""Amounts in a few characters, with the unit in sight."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def amount(value: float | None, unit: str) -> str:
    """``3.00 TFLOP``, ``412 MB``; a dash where nothing was measured."""
    if value is None:
        return "-"
    size, place = float(value), 0
    while abs(size) >= 999.5 and place < len(PREFIXES) - 1:
        size, place = size / 1000, place + 1
    digits = 0 if size == int(size) and place == 0 else 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{digits}f} {PREFIXES[place]}{unit}"


def seconds(value: float | None) -> str:
    """``4.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share(part: float, whole: float) -> str:
    """``12 %``; a part above zero never shows as 0."""
    if whole <= 0 or part <= 0:
        return "0 %"
    percent = 100 * part / whole
    return "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
