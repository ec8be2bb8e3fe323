"""The parts of the page that speak of results."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.frontier import CONTROL_TO_BEAT, DENSE, budget_key
from experiments.frontier.decisions import copies, counts_decision, decision_on
from experiments.frontier.verdict import reference
from experiments.frontier.wording import interval_text, loss_text, multiplier_text, over_text, seeds_text
from experiments.report.axes import amount_name, amount_text, axis_names
from experiments.report.explain import CONTROLS, COPYING, GENERALISATION
from experiments.report.figure import draw, to_bytes
from experiments.report.marks import DARK, LIGHT, Palette
from experiments.report.markup import Markup, join, table, tag
from experiments.report.profiles import draw_profiles, profiles

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]

TITLES = {
    "same tokens": "Same tokens: a store holds only what the network trained on",
    "whole corpus": "Whole corpus: a store holds more text than the network trained on",
}

# Second frontiers: axis, name in an entry, heading.
_FURTHER = (
    ("read_flops", "any_budget", "inference FLOPs, training bill put aside"),
    ("seconds", "any_width", "seconds, dense of any width"),
    ("bytes", "any_width", "bytes, dense of any width"),
)


def top(summary: Summary, question: str, runs: int) -> Markup:
    """Question, answer, and what is missing."""
    parts = [tag("h1", question), tag("p", summary["answer"], class_="answer")]
    budgets = ", ".join(map(budget_key, summary["budgets"]))
    parts.append(
        tag(
            "p",
            f"Study {summary['study']}: {runs} runs, {seeds_text(summary['seeds'])}, training FLOPs {budgets}.",
            class_="meta",
        )
    )
    warnings = [f"Not there yet: {'; '.join(summary['missing'])}."] if summary["missing"] else []
    warnings += summary["cautions"].values()
    if summary["diverged"]:
        warnings.append(f"Left out because the loss was not a number: {'; '.join(summary['diverged'])}.")
    if len(summary["seeds"]) == 1:
        warnings.append("There is one seed, so no interval and no claim: these are single measurements.")
    if len(summary["revisions"]) > 1:
        warnings.append(f"Rows of several code revisions are mixed: {', '.join(summary['revisions'])}.")
    return join([*parts, *(tag("p", warning, class_="warning") for warning in warnings)])


def figure(summary: Summary) -> Markup:
    """The figure of losses and multipliers."""
    caption = (
        "Above: test loss against the whole training bill. The line is the dense frontier with its 95 % band over "
        "seeds; dots are the other dense widths tried. Circles: same tokens; diamonds: whole corpus; hollow: "
        "controls. Arms at one budget stand side by side. Below: how many times an arm's amount dense would need, "
        "with 95 % intervals; an arrow means that dense was not measured further that way."
    )
    return _figure(draw, summary, summary["answer"], caption)


def _figure(drawn: Callable[[Summary, Palette], Figure], summary: Summary, alt: str, caption: str) -> Markup:
    """A figure in the scheme of the reader, inside of the page."""

    def source(palette: Palette) -> str:
        return f"data:image/svg+xml;base64,{b64encode(to_bytes(drawn(summary, palette), 'svg')).decode()}"

    picture = tag(
        "picture",
        tag("source", media="(prefers-color-scheme: dark)", srcset=source(DARK)),
        tag("img", src=source(LIGHT), alt=alt),
    )
    return tag("figure", tag("div", picture, class_="figure"), tag("figcaption", caption))


def arms(summary: Summary) -> Markup:
    """Losses and what was spent, one table a regime."""
    parts = [tag("h2", "Arms")]
    for regime, title in TITLES.items():
        body = [
            [
                arm_label(name, entry, under_heading=True),
                budget,
                number(loss_text(entry["bits_per_byte"])),
                _gain_cell(entry),
                entry["width"],
                len(entry["seeds"]),
                *(amount_text(axis, entry["amounts"].get(axis)) for axis in axis_names(summary)),
            ]
            for name, budget, entry in entries(
                summary, ("none", regime) if regime == "same tokens" else (regime,)
            )
        ]
        if not body:
            continue
        head = [
            "arm",
            "training FLOPs",
            "bits per byte, test",
            f"gain over “{CONTROL_TO_BEAT}”",
            "width",
            "seeds",
        ]
        head += map(amount_name, axis_names(summary))
        parts += [
            tag("h3", title),
            table(
                head,
                body,
                caption=f"Controls in italics. {over_text(summary['intervals'], summary['confidence'])}",
                numeric=range(1, len(head)),
            ),
        ]
        if regime == "whole corpus":
            parts.append(
                tag("p", "What is gained over dense here is data access, not architecture.", class_="note")
            )
    return join(parts)


def multipliers(summary: Summary) -> Markup:
    """Every axis with intervals, and the stricter reading of inference."""
    further = [
        (axis, key, title)
        for axis, key, title in _FURTHER
        if axis in summary["axes"]
        and all(key in entry[axis] for _, _, entry in entries(summary, tuple(TITLES)))
    ]
    parts = [
        tag("h2", "Multipliers"),
        tag(
            "p",
            f"How many times the arm's own amount {reference(summary)} would need for the same loss. Bold: better than "
            "dense, shown at 95 %; the other colour: worse; neither: no difference shown.",
        ),
    ]
    for regime, title in TITLES.items():
        body = [
            [
                arm_label(name, entry, under_heading=True),
                budget,
                *(multiplier_cell(entry, axis) for axis in axis_names(summary)),
                *(number(multiplier_text(entry[axis][key])) for axis, key, _ in further),
            ]
            for name, budget, entry in entries(summary, (regime,))
        ]
        if body:
            head = ["arm", "budget", *axis_names(summary).values()]
            head += [title for _, _, title in further]
            parts += [
                tag("h3", title),
                table(
                    head,
                    body,
                    caption="With 95 % intervals.",
                    numeric=range(1, len(head)),
                    class_="stacked",
                ),
            ]
    sentences = [tag("p", line) for line in summary["verdict"].splitlines()[1:]]
    parts.append(tag("details", tag("summary", "The same in sentences"), *sentences))
    return join(parts)


def controls(summary: Summary) -> Markup:
    """What each control is for, beside what it reached."""
    body = [
        [
            arm_label(name, entry),
            budget,
            loss_text(entry["bits_per_byte"]),
            multiplier_text(entry["train_flops"]),
        ]
        for name, budget, entry in entries(summary, ("none", *TITLES))
        if entry["control"]
    ]
    if not body:
        return join(
            [tag("h2", "Controls"), tag("p", "No control has run: nothing can be claimed.", class_="warning")]
        )
    # "memory off" is a control of an arm, and is named after it.
    ran = {
        entry["arm"].rsplit(", ", 1)[-1]
        for _, _, entry in entries(summary, ("none", *TITLES))
        if entry["control"]
    }
    meanings = [tag("li", tag("strong", arm), ": ", CONTROLS[arm]) for arm in CONTROLS if arm in ran]
    missing = [arm for arm in CONTROLS if arm not in ran]
    return join(
        [
            tag("h2", "Controls"),
            tag("ul", *meanings),
            tag("p", f"Not run: {', '.join(missing)}.", class_="warning") if missing else "",
            table(
                ["control", "budget", "bits per byte, test", "worth in dense training FLOPs"],
                body,
                caption="What the controls reach.",
                numeric=range(1, 4),
            ),
        ]
    )


def generalisation(summary: Summary) -> Markup:
    """Losses on sources never trained on, where the corpus has such."""
    body = []
    for name, budget, entry in entries(summary, ("none", *TITLES)):
        if entry["heldout"] is None:
            continue
        losses = entry["bits_per_byte"]["mean"], entry["heldout"]
        gains = ["-", "-"]
        # Partial results may lack dense at a budget.
        dense = summary["arms"][DENSE].get(budget)
        if name != DENSE and dense is not None and dense["heldout"] is not None:
            references = dense["bits_per_byte"]["mean"], dense["heldout"]
            gains = [f"{reference - loss:+.3f}" for reference, loss in zip(references, losses, strict=True)]
        body.append([arm_label(name, entry), budget, *(f"{loss:.3f}" for loss in losses), *gains])
    if not body:
        return Markup("")
    head = ["arm", "budget", "bits per byte, test", "elsewhere", "gain over dense, test", "elsewhere"]
    return join(
        [
            tag("h2", "On sources never trained on"),
            tag("p", GENERALISATION),
            table(head, body, caption="Means over seeds.", numeric=range(1, 6)),
        ]
    )


def copying(summary: Summary) -> Markup:
    """The probe that decides what a multiplier means."""
    body = [
        [
            arm_label(name, entry),
            budget,
            f"{probe['first']:.2f}",
            f"{probe['second']:.2f}",
            f"{probe['first'] - probe['second']:+.2f}",
            "copies" if copies(probe) else "does not copy",
        ]
        for name, budget, entry in entries(summary, ("none", *TITLES))
        if (probe := entry["copying"]) is not None and not entry["control"]
    ]
    shown = (
        table(
            ["arm", "budget", "first copy", "second copy", "gain", ""],
            body,
            caption="Nats per token, mean over seeds.",
            numeric=range(1, 5),
        )
        if body
        else tag(
            "p", "The probe has not run: it is not known on which side of that transition these models are."
        )
    )
    return join([tag("h2", "Copying probe"), tag("p", COPYING), shown])


def dense(summary: Summary) -> Markup:
    """Every width at every budget: the frontier is only as good as its tuning."""
    body = [
        [
            budget_key(point["budget"]),
            f"{point['width']} (chosen)" if point["tuned"] else point["width"],
            f"{point['valid']:.3f}",
            loss_text(point["bits_per_byte"]),
            len(point["seeds"]),
            *(amount_text(axis, point["amounts"].get(axis)) for axis in axis_names(summary)),
        ]
        for point in summary["dense"]
    ]
    head = ["budget", "width", "bits per byte, validation", "bits per byte, test", "seeds"]
    head += map(amount_name, axis_names(summary))
    notes = _edges(summary)
    drawn = (
        "IsoFLOP profiles: dense models of several widths at each budget; filled: the width chosen on validation text. "
        "Parabolas are a guide to the eye, where there are three widths: the frontier goes through the chosen ones."
    )
    caption = "The width is chosen on validation text and compared on test text."
    return join(
        [
            tag("h2", "Dense frontier"),
            *(tag("p", note, class_="warning") for note in notes),
            _figure(draw_profiles, summary, "Test loss of dense models over their size", drawn)
            if profiles(summary)
            else "",
            table(head, body, caption=caption, numeric=range(1, len(head))),
        ]
    )


def _edges(summary: Summary) -> list[str]:
    """A best width at the end of its range means that the frontier may not be tuned."""
    notes: list[str] = []
    for budget in summary["budgets"]:
        points = [point for point in summary["dense"] if point["budget"] == budget]
        widths = sorted(point["width"] for point in points)
        chosen = [point["width"] for point in points if point["tuned"]]
        if chosen and chosen[0] in (widths[0], widths[-1]):
            side = "largest" if chosen[0] == widths[-1] else "smallest"
            which = f"the {side} of {len(widths)} tried" if len(widths) > 1 else "the only one tried"
            notes.append(
                f"At {budget_key(budget)} the best dense width, {chosen[0]}, is {which}: a "
                "better one may lie beyond, and every multiplier that rests on this point would be smaller."
            )
    return notes


def entries(summary: Summary, regimes: tuple[str, ...]) -> Iterator[tuple[str, str, Entry]]:
    """Name, budget and cell of every arm in some regimes."""
    for name, budgets in summary["arms"].items():
        for budget, entry in budgets.items():
            if entry["regime"] in regimes:
                yield name, budget, entry


def multiplier_cell(entry: Entry, axis: str) -> Any:
    """A multiplier in the colour of what its interval shows; a dash on an axis that was not measured."""
    if axis not in entry:
        return "-"
    shown = decision_on(entry, axis).replace(" ", "-")
    return tag("span", number(multiplier_text(entry[axis])), class_=shown)


def _gain_cell(entry: Entry) -> Any:
    """The gain over counts in the colour of what can be claimed of it."""
    if (gain := entry["gain_over_counts"]) is None:
        return "-"
    shown = counts_decision(entry).replace(" ", "-")
    return tag("span", number(interval_text(gain, sign="+")), class_=shown)


def number(text: str) -> Markup:
    """The number, and its interval smaller."""
    number, bracket, rest = text.partition(" [")
    return join([number, " ", tag("small", f"[{rest}")]) if bracket else join([number])


def arm_label(name: str, entry: Entry, *, under_heading: bool = False) -> Any:
    """The name of an arm, a control in italics; under the heading of a regime, without the regime."""
    if entry["arm"] == DENSE:
        return f"{name} (best width)"
    name = name.removesuffix(" (whole corpus)") if under_heading else name
    return tag("span", name, class_="control") if entry["control"] else name
