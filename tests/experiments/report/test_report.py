"""The report says what the rows say, escapes everything, fetches nothing and survives partial results."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.frontier import ResultsError, answer, summarize
from experiments.frontier.wording import multiplier_text
from experiments.report import print_table, write_report
from experiments.report.axes import axis_names
from experiments.report.figure import ABREAST, DARK, draw, to_bytes
from experiments.report.marks import LIGHT, marks
from experiments.report.markup import VOID, tag
from experiments.report.sections import generalisation
from experiments.report.units import amount, seconds, share
from tests.experiments.synthetic import ARMS, rows

CORPUS = {
    "name": "code <script>alert(1)</script>",
    "train": {"tokens": 25_660_000},
    "packages": ["torch", "sympy"],
}
AUDIT = {"matched_share": 0.108, "window": 32}
COMMAND = "mnemograph compare memory_per_flop --out 'runs & more'"


class Reading(HTMLParser):
    """Collects text, tags and links, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for key, value in attrs if key in ("src", "srcset", "href", "action", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if {"h1", "h2", "h3"} & set(self.open):
            self.headings[-1] += data


def read(path: Path) -> Reading:
    reading = Reading()
    reading.feed((path / "report.html").read_text())
    reading.close()
    assert reading.open == []
    return reading


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(rows(), folder, corpus=CORPUS, audit=AUDIT, command=COMMAND)


def test_three_files_and_nothing_else(report: tuple[Path, dict[str, Any]]):
    folder, summary = report
    assert sorted(path.name for path in folder.iterdir()) == ["frontier.png", "report.html", "summary.json"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_page_opens_with_question_and_answer(report: tuple[Path, dict[str, Any]]):
    folder, summary = report
    reading = read(folder)
    assert reading.headings[0].endswith("?")
    text = "".join(reading.text)
    assert summary["answer"] in text
    assert text.index(summary["answer"]) < text.index("Multipliers")
    for heading in (
        "Arms",
        "Multipliers",
        "Controls",
        "Copying probe",
        "Bill",
        "Settings and tuning",
        "Dense frontier",
        "Corpus and overlap",
        "How we count",
        "To do it again",
    ):
        assert heading in reading.headings


def test_page_needs_nothing_from_outside(report: tuple[Path, dict[str, Any]]):
    folder, _ = report
    reading = read(folder)
    assert reading.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in reading.links)
    assert not {"script", "link", "iframe", "object"} & set(reading.tags)
    source = (folder / "report.html").read_text()
    assert not re.search(r"@import|url\(|https?://", source)
    assert "prefers-color-scheme: dark" in source
    assert "width=device-width" in source


def test_everything_from_outside_is_escaped(report: tuple[Path, dict[str, Any]], tmp_path: Path):
    source = (report[0] / "report.html").read_text()
    assert "<script>" not in source
    assert "code &lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert "runs &amp; more" in source
    arms = {("<b>x</b>", "same tokens"): {"worth": 1.5, "read": 1.0}}
    table = rows(arms=arms, seeds=1)
    for row in table:
        row["settings"] = {"<i>rate</i>": "<u>1</u>"}
    write_report(table, tmp_path, corpus=None, audit=None, command="<x>", question="<em>?</em>")
    reading = read(tmp_path)
    assert not {"b", "i", "u", "x", "em"} & set(reading.tags)


def test_numbers_on_the_page_are_those_of_the_summary(report: tuple[Path, dict[str, Any]]):
    folder, summary = report
    reading = read(folder)
    cell = summary["arms"]["ngram"]["3e12"]
    row = next(
        row
        for row in reading.rows
        if row[:2] == ["ngram", "3e12"] and row[2].startswith(f"{cell['train_flops']['multiplier']:.2f}x")
    )
    for place, axis in enumerate(axis_names(summary)):
        assert row[2 + place].startswith(multiplier_text(cell[axis]))
    assert row[2 + len(summary["axes"])].startswith("at most")
    text = "".join(reading.text)
    assert COMMAND in text
    assert summary["fingerprint"] in text
    assert "0123abc" in text
    assert "torch 2.13.0" in text
    assert "25,660,000" in text
    assert "0.108" in text
    assert "aten.mm" in text


def test_regimes_stand_in_different_tables(report: tuple[Path, dict[str, Any]]):
    source = (report[0] / "report.html").read_text()
    arms = source[source.index("<h2>Arms") : source.index("<h2>How sure")]
    for block in re.findall(r"<table>.*?</table>", arms, flags=re.S):
        graphs = block.count('<th scope="row">graph</th>')
        assert graphs in (0, 2)  # one line a budget; a table with both regimes would have four
    assert arms.count("Whole corpus:") >= 2
    assert "data access, not architecture" in arms


def test_one_seed_says_that_there_is_no_interval(tmp_path: Path):
    summary = write_report(rows(seeds=1), tmp_path, corpus=CORPUS, audit=AUDIT, command=COMMAND)
    text = "".join(read(tmp_path).text)
    assert "no interval" in summary["answer"]
    assert "There is one seed" in text
    assert summary["arms"]["ngram"]["3e12"]["train_flops"]["low"] is None


def test_partial_results_make_a_page_that_says_so(tmp_path: Path):
    table = [
        row
        for row in rows()
        if row["arm"] in ("dense", "ngram") and not (row["arm"] == "ngram" and row["seed"] == 1)
    ]
    write_report(table, tmp_path, corpus=None, audit=None, command=COMMAND)
    text = "".join(read(tmp_path).text)
    assert "ngram at 3e12: 2 of 3 seeds (without 1)" in text
    assert "No control has run" in text
    assert "not audited" in text
    write_report(
        [row for row in table if row["arm"] == "dense"], tmp_path, corpus=None, audit=None, command=COMMAND
    )
    assert "nothing to compare" in "".join(read(tmp_path).text)


def test_a_best_width_at_the_edge_is_flagged(tmp_path: Path):
    table = [row for row in rows(arms={}, noise=0.0) if row["width"] >= 64]
    write_report(table, tmp_path, corpus=None, audit=None, command=COMMAND)
    assert "64, is the smallest of 3 tried" in "".join(read(tmp_path).text)


def test_unequal_tuning_is_flagged(report: tuple[Path, dict[str, Any]], tmp_path: Path):
    warning = "different numbers of tuning trials"
    assert warning not in "".join(read(report[0]).text)
    table = rows(seeds=1)
    for row in table:
        if row["arm"] == "ngram":
            row["settings"]["trials"] = 20
    write_report(table, tmp_path, corpus=None, audit=None, command=COMMAND)
    assert warning in "".join(read(tmp_path).text)


def test_rows_that_cannot_be_compared_write_nothing(tmp_path: Path):
    table = rows(seeds=1)
    table[0]["corpus"] = "cd" * 32
    with pytest.raises(ResultsError, match="2 corpora"):
        write_report(table, tmp_path / "out", corpus=None, audit=None, command=COMMAND)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = rows(seeds=1, arms={})
    write_report(table, tmp_path, corpus=None, audit=None, command="before")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = Path.write_bytes

    def failing(path: Path, data: bytes) -> int:
        if "report.html" in path.name:
            raise OSError("no space left")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="no space left"):
        write_report(table, tmp_path, corpus=None, audit=None, command="after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    table = rows(seeds=2, arms={key: ARMS[key] for key in list(ARMS)[:2]})
    for name in ("one", "two"):
        write_report(table, tmp_path / name, corpus=CORPUS, audit=AUDIT, command=COMMAND)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_figure_has_a_panel_an_axis_and_names_every_arm():
    summary = summarize(rows(seeds=2))
    figure = draw(summary)
    top, *panels = figure.axes
    assert [panel.get_xlabel() for panel in panels] == list(axis_names(summary).values())
    assert panels[0].get_xlabel() == "training FLOPs"
    shown = {text.get_text() for text in top.get_legend().get_texts()}
    arms = {name for name in summary["arms"] if "memory off" not in name}
    assert arms - {"dense"} <= shown
    assert len({panel.get_xlim() for panel in panels}) == 1
    assert to_bytes(draw(summary, DARK), "svg").startswith(b"<?xml")


def test_many_budgets_are_drawn_over_the_budget():
    budgets = (1e12, 3e12, 1e13)
    summary = summarize(rows(seeds=2, budgets=budgets))
    chosen = marks(summary, LIGHT)
    groups = list(dict.fromkeys(mark.group for mark in chosen))
    _, *panels = draw(summary).axes
    count = len(summary["axes"])
    assert len(panels) == count * len(groups)
    assert sorted(filter(None, (panel.get_ylabel() for panel in panels))) == sorted(
        groups * -(-count // ABREAST)
    )
    assert len({panel.get_ylim() for panel in panels}) == 1
    drawn = [
        line for line in panels[0].lines if len(set(line.get_xdata())) > 1 and line.get_marker() == "None"
    ]
    known = [
        sum(entry["train_flops"]["beyond"] != "point" for entry in summary["arms"][mark.name].values())
        for mark in chosen
        if mark.group == groups[0]
    ]
    assert min(known) < len(budgets)
    # Each arm's multipliers are joined, its bounds are not; one more line stands at 1.
    assert len(drawn) == 1 + sum(max(0, count - 1) for count in known)


def test_marks_tell_arms_regimes_and_controls_apart():
    found = {mark.name: mark for mark in marks(summarize(rows(seeds=1)), LIGHT)}
    assert found["knn"].color == found["knn (whole corpus)"].color
    assert found["knn"].shape != found["knn (whole corpus)"].shape
    assert found["knn"].color != found["graph"].color
    assert found["dense + counts"].hollow
    assert not found["knn"].hollow
    hollow = [mark for mark in found.values() if mark.hollow]
    assert len({(mark.color, mark.shape) for mark in hollow}) == len(hollow)


def test_table_is_plain_where_there_is_no_terminal():
    buffer = io.StringIO()
    print_table(summarize(rows()), buffer)
    text = buffer.getvalue()
    assert "\x1b" not in text
    assert text.index("Same tokens:") < text.index("Whole corpus:")
    assert re.search(r"^\|ngram +\| +3e12 .* 2\.\d\dx \[2\.\d\d, 2\.\d\d\]", text, re.M)
    assert "dense + counts *" in text
    assert text.rstrip().endswith("as well.")


def test_with_many_budgets_the_table_by_budget_comes_first():
    summary = summarize(rows(seeds=2, budgets=(1e12, 3e12, 1e13)))
    file = io.StringIO()
    print_table(summary, file)
    text = file.getvalue()
    first = text[: text.index("Reference:")]
    multipliers = first[first.index("Compute multiplier") : first.index("Gain over")].splitlines()
    assert [cell.strip() for cell in multipliers[2].strip("|").split("|")] == ["arm", "1e12", "3e12", "1e13"]
    (line,) = [line for line in multipliers if line.startswith("|ngram ")]
    for budget, entry in summary["arms"]["ngram"].items():
        assert multiplier_text(entry["train_flops"]) in line, budget
    few = io.StringIO()
    print_table(summarize(rows(seeds=2)), few)
    assert "Compute multiplier" not in few.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_table_fits_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    assert Console(file=screen).is_terminal
    summary = summarize(rows(seeds=2))
    print_table(summary, screen)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "\x1b" in screen.getvalue()
    told = [
        line
        for line in plain.splitlines()
        if not re.match(r"(At|Same|Whole|Break|Reference|Compute|Intervals|“beyond)", line)
    ]
    assert max(map(len, told)) <= columns
    assert "…" not in plain  # no number is cut
    # Every axis is there, whatever the width: on one line for each arm and budget, or on several.
    entry = summary["arms"]["graph"]["3e12"]
    for axis in summary["axes"]:
        assert f"{entry[axis]['multiplier']:.2f}x" in plain


def test_an_arm_of_one_seed_among_others_is_said_to_be_one():
    first = [row for row in rows(seeds=2) if (row["arm"], row["seed"]) != ("ngram", 1)]
    said = answer(summarize(first))
    assert re.search(r"ngram [^;(]*one seed with the spread of other arms", said)
    assert "one seed" not in answer(summarize(rows(seeds=2)))


def test_units_read_well():
    assert amount(3e12, "FLOP") == "3.00 TFLOP"
    assert amount(4.12e8, "B") == "412 MB"
    assert amount(999.6, "B") == "1.00 kB"
    assert amount(0, "FLOP") == "0 FLOP"
    assert amount(None, "B") == "-"
    assert seconds(4.24) == "4.2 s"
    assert seconds(185) == "3 min 05 s"
    assert seconds(7800) == "2 h 10 min"
    assert share(1, 1e6) == "< 0.1 %"
    assert share(1, 4) == "25 %"
    assert share(0, 0) == "0 %"


def test_markup_escapes_text_and_attributes():
    assert tag("p", "<b>", class_='a"b') == '<p class="a&quot;b">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x")) == "<p><b>x</b></p>"


def test_losses_elsewhere_are_shown_where_there_are_any_even_without_dense_beside_them():
    table = rows()
    partial = [row for row in table if not (row["arm"] == "dense" and row["budget"] == 1e12)]
    for row in partial:
        row["losses"]["heldout"] = {"bits_per_byte": row["losses"]["test"]["bits_per_byte"] + 0.1}
    page = Reading()
    page.feed(generalisation(summarize(partial)))
    shown = {tuple(cells[:2]): cells[2:] for cells in page.rows}
    assert shown["ngram", "1e12"][2:] == ["-", "-"]
    test, elsewhere, *gains = map(float, shown["ngram", "3e12"])
    assert elsewhere == pytest.approx(test + 0.1, abs=2e-3)
    assert gains[0] == gains[1] > 0
    for row in table:
        del row["losses"]["heldout"]
    assert generalisation(summarize(table)) == ""
