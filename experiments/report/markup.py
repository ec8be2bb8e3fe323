"""HTML that escapes by default: only what these functions built passes unescaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = frozenset({"img", "meta", "source", "br", "hr"})


def tag(name: str, /, *children: Any, **attributes: str) -> Markup:
    """One element; children other than :class:`Markup` are escaped, ``class_`` stands for ``class``."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"'
        for key, value in attributes.items()
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Children one after the other, escaped where they are plain text."""
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child)) for child in children))


def table(
    head: Sequence[Any],
    body: Iterable[Sequence[Any]],
    *,
    caption: str,
    numeric: Iterable[int] = (),
    class_: str = "",
) -> Markup:
    """A table that scrolls sideways in its own box; the first cell of a row is its heading.

    Args:
        head: column headings.
        body: rows of cells.
        caption: what the table shows, read out first by a screen reader.
        numeric: columns set flush right, in figures of equal width.
        class_: of the table element.
    """
    right = frozenset(numeric)

    def cells(row: Sequence[Any], kind: str) -> Markup:
        made = []
        for place, value in enumerate(row):
            first = kind == "td" and place == 0
            attributes = {"class_": "n"} if place in right else {}
            if kind == "th" or first:
                attributes["scope"] = "col" if kind == "th" else "row"
            made.append(tag("th" if first else kind, value, **attributes))
        return tag("tr", *made)

    inner = [
        tag("caption", caption),
        tag("thead", cells(head, "th")),
        tag("tbody", *(cells(row, "td") for row in body)),
    ]
    attributes = {"class_": class_} if class_ else {}
    return tag(
        "div",
        tag("table", *inner, **attributes),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def definitions(values: Mapping[str, Any]) -> Markup:
    """Nested plain values as a definition list: what a corpus or an audit says of itself."""
    entries: list[Markup] = []
    for key, value in values.items():
        entries += [tag("dt", str(key).replace("_", " ")), tag("dd", _value(value))]
    return tag("dl", *entries)


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return definitions(value)
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (Mapping, list, tuple)) for item in value):
            return tag("ul", *(tag("li", _value(item)) for item in value))
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value
