"""Every format says what the summary says, and is a valid file of its kind."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.commands.report import NAMES
from experiments.report import FORMATS, Findings, find, print_table
from experiments.report.content import REGIMES, Cell, Table, tables
from experiments.report.figure import draw
from experiments.report.latex import escaped
from experiments.report.markdown import rendered
from experiments.report.table import PLAIN
from tests.experiments.synthetic import ARMS, rows


def made(name: str, findings: Findings) -> str:
    return FORMATS[name].to_bytes(findings).decode()


def lines_of(findings: Findings) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made("csv", findings))))


def test_every_number_of_the_csv_is_the_summarys(measured: Findings):
    summary = measured.summary
    left = {
        (name, float(budget), axis)
        for name, budgets in summary["arms"].items()
        for budget in budgets
        for axis in summary["axes"]
    }
    keys = {float(key): key for budgets in summary["arms"].values() for key in budgets}
    for line in lines_of(measured):
        entry = summary["arms"][line["arm"]][keys[float(line["budget_flops"])]]
        cell = entry["matmul_flops"] if line["convention"].startswith("matrix") else entry[line["axis"]]
        further = {"dense of any budget": "any_budget", "dense of any width": "any_width"}
        cell = cell[further[line["against"]]] if line["against"] in further else cell
        expected = {key: cell[key] for key in ("multiplier", "low", "high")}
        for name in ("bits_per_byte", "gain_over_counts"):
            ends = entry[name] or {"mean": None, "low": None, "high": None}
            expected |= {name: ends["mean"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
        gain = entry["gain_over_counts"] or {"p": None, "p_holm": None}
        expected |= {"gain_over_counts_p": gain["p"], "gain_over_counts_p_corrected": gain["p_holm"]}
        assert {key: float(line[key]) if line[key] else None for key in expected} == expected
        assert (line["bound"] or None, line["regime"]) == (cell["bound"], entry["regime"])
        assert (line["seeds"], line["control"]) == (str(len(entry["seeds"])), str(entry["control"]))
        left.discard((line["arm"], float(line["budget_flops"]), line["axis"]))
    assert not left


def test_the_csv_names_the_convention_of_every_flop_and_has_training_under_both(invented: Findings):
    found = lines_of(invented)
    for line in found:
        assert ("pairs multiplied" in line["convention"]) == line["axis"].endswith("flops")
    place = ("ngram", "3000000000000.0", "train_flops")
    ways = [
        line["convention"] for line in found if (line["arm"], line["budget_flops"], line["axis"]) == place
    ]
    assert len(ways) == len(set(ways)) == 2


def markdown_tables(text: str) -> list[list[list[str]]]:
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        for block in blocks
    ]


def cells(table: Table) -> list[list[str]]:
    return [list(table.columns), *([cell.text for cell in row] for row in table.rows)]


def test_markdown_and_the_plain_terminal_have_the_cells_of_the_model(measured: Findings):
    expected = [cells(table) for table in tables(measured.summary)]
    assert len(expected) >= len(REGIMES)
    found = markdown_tables(made("markdown", measured))
    assert all(set("".join(table.pop(1))) <= {"-"} for table in found)
    assert found == expected
    # In parts that can be read, each with what its rows are about.
    parts = markdown_tables(made("table", measured))
    assert all(set("".join(part.pop(1))) <= {"-"} for part in parts)
    for table, whole in zip(tables(measured.summary), expected, strict=True):
        joined = parts.pop(0)
        while len(joined[0]) < len(whole[0]):
            part = parts.pop(0)
            assert [row[: table.keys] for row in part] == [row[: table.keys] for row in whole]
            joined = [row + more[table.keys :] for row, more in zip(joined, part, strict=True)]
        assert joined == whole
    assert not parts
    assert max(len(line) for line in made("table", measured).splitlines() if line.startswith("|")) <= PLAIN


def test_a_terminal_has_the_cells_of_the_model(invented: Findings, monkeypatch: pytest.MonkeyPatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen()
    print_table(invented.summary, screen)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    for table in tables(invented.summary):
        for row in table.rows:
            for cell in row[1:]:
                for piece in re.split(r" (?=\[|\()", cell.text):
                    assert piece in shown


def latex_rows(text: str) -> list[list[str]]:
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.S)
    return [line.removesuffix(r" \\").split(" & ") for body in bodies for line in body.strip().splitlines()]


def plain(cell: str) -> str:
    cell = re.sub(r"^\\textbf\{(.*)\}$", r"\1", cell)
    return re.sub(r"\$([+-])\$", r"\1", cell).replace(r"\,", " ")


def test_latex_has_the_cells_of_the_model_and_its_tables_are_whole(measured: Findings):
    text = made("latex", measured)
    assert re.findall(r"\\begin\{(\w+)\}", text).count("tabular") == text.count(r"\end{tabular}")
    for spec, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}(l?r*)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.S
    ):
        rows_of = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in rows_of} == {len(spec) - 1}
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(labels) == len(set(labels)) == text.count(r"\begin{table}")
    found = {plain(cell) for row in latex_rows(text) for cell in row}
    model = {
        re.sub(r"(?<=\d)x\b", "", cell.text)
        for table in tables(measured.summary)
        for row in table.rows
        for cell in row
    }
    assert found == model


def test_a_latex_interval_stays_with_its_number_and_says_where_it_is_better(invented: Findings):
    entry = invented.summary["arms"]["ngram"]["3e12"]["train_flops"]
    shown = f"{entry['multiplier']:.2f}\\,[{entry['low']:.2f}, {entry['high']:.2f}]"
    assert rf"\textbf{{{shown}}}" in made("latex", invented)


def test_latex_escapes_what_it_must():
    assert escaped('50 % of a_b & "c" {x} #1 $ ~^\\') == (
        r"50 \% of a\_b \& ``c'' \{x\} \#1 \$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_latex_compiles_and_no_table_is_too_wide(measured: Findings, invented: Findings, tmp_path: Path):
    for name, findings in (("measured", measured), ("invented", invented)):
        (tmp_path / f"{name}.tex").write_text(made("latex", findings))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage[margin=1in]{geometry}\\usepackage{booktabs}\n"
        "\\begin{document}\\input{measured}\\clearpage\\input{invented}\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


@pytest.mark.parametrize("name", ["html", "markdown", "latex"])
def test_the_artefacts_say_how_attention_is_counted_and_what_breaking_even_means(
    name: str, invented: Findings
):
    text = re.sub(r"\s+", " ", made(name, invented)).replace("&#x27;", "'")
    assert "billed by the pairs that live, about half of the square" in text
    assert "N = building / (FLOPs per token of dense at the arm's loss - FLOPs per token of the arm" in text
    assert "matrix products alone. Searching and building count in full under both" in text
    for sentence in invented.summary["trade_offs"]:
        assert name == "latex" or sentence in text


def test_pictures_are_valid(invented: Findings):
    root = ElementTree.fromstring(FORMATS["svg"].to_bytes(invented))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    with Image.open(io.BytesIO(FORMATS["png"].to_bytes(invented))) as picture:
        picture.load()
        width, height = draw(invented.summary).get_size_inches()
        assert picture.size == (round(160 * width), int(160 * height))


class Loads(HTMLParser):
    """What a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = ("src", "srcset", "data", "poster", "action") + (("href",) if tag != "a" else ())
        self.found += [value or "" for key, value in attrs if key in loading]


def test_the_page_of_the_committed_runs_loads_nothing(measured: Findings):
    text = made("html", measured)
    loads = Loads()
    loads.feed(text)
    assert loads.found
    assert all(link.startswith("data:") for link in loads.found)
    assert not re.search(r"@import|url\(", text)


def with_axes(findings: Findings, axes: list[str]) -> Findings:
    """The findings as they would be with other axes: a new one has the numbers of the bytes."""
    arms = {
        name: {
            budget: {
                **{key: value for key, value in entry.items() if key in axes or key not in known(findings)},
                **{axis: entry["bytes"] for axis in axes if axis not in entry},
            }
            for budget, entry in budgets.items()
        }
        for name, budgets in findings.summary["arms"].items()
    }
    return replace(findings, summary={**findings.summary, "axes": axes, "arms": arms})


def known(findings: Findings) -> list[str]:
    return findings.summary["axes"]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_take_whatever_axes_a_summary_lists(name: str, invented: Findings):
    fewer = with_axes(invented, ["train_flops", "bytes"])
    assert "training seconds" not in str(tables(fewer.summary))
    FORMATS[name].to_bytes(fewer)
    more = with_axes(invented, [*invented.summary["axes"], "queue_length", "queue_bytes"])
    del more.summary["arms"]["ngram"]["3e12"]["queue_length"]  # and not every row was measured on it
    content = FORMATS[name].to_bytes(more)
    if name in ("html", "markdown", "latex", "table"):
        assert "queue length" in content.decode()
    if name == "csv":
        assert b",queue_length," in content


def partial() -> list[dict[str, Any]]:
    return [row for row in rows(seeds=1) if row["arm"] in ("dense", "ngram", "graph")]


@pytest.mark.parametrize(
    "given",
    [
        rows(seeds=1, arms={key: ARMS[key] for key in list(ARMS)[:4]}),
        partial(),
        rows(arms={}),
    ],
    ids=["one seed", "partial", "dense alone"],
)
def test_formats_survive_what_is_not_there_yet(given: list[dict[str, Any]]):
    findings = find(given)
    for name, form in FORMATS.items():
        assert form.to_bytes(findings), name
    assert "nan" not in made("csv", findings).lower()


def test_a_bar_in_a_name_does_not_break_a_markdown_table(invented: Findings):
    (table, *_) = tables(invented.summary)
    first, *others = table.rows[0]
    odd = replace(table, rows=((replace(first, text="a|b"), *others),))
    assert markdown_tables(rendered(odd))[0][2][0] == "a\\|b"


def test_a_table_that_is_too_wide_is_cut_at_its_middle_and_where_it_is_full():
    def columns(table: Table, room: int) -> list[str]:
        return ["".join(part.columns) for part in table.fitted([2] * 7, room)]

    table = Table("", tuple("kabcdef"), (tuple(map(Cell, "kabcdef")),), keys=1, starred=False)
    assert columns(table, 14) == ["kabcdef"]
    assert columns(table, 12) == ["kabc", "kdef"]  # even, not five and one
    assert columns(table, 6) == ["kab", "kcd", "kef"]
    assert columns(table, 1) == ["ka", "kb", "kc", "kd", "ke", "kf"]
    assert columns(replace(table, middle=3), 12) == ["kab", "kcdef"]
    assert table.fitted([2] * 7, 6)[1].rows == ((Cell("k"), Cell("c"), Cell("d")),)


def test_the_command_knows_every_format():
    assert sorted(NAMES) == sorted(FORMATS)
