"""Every format says the same of intervals, of the load of the machine and of tuning."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from experiments.frontier import summarize
from experiments.frontier.wording import interval_text, loss_text
from experiments.report import FORMATS, Findings, find, print_table
from tests.experiments.frontier.test_cautions import own_study
from tests.experiments.synthetic import ARMS, rows

FEW = {key: ARMS[key] for key in list(ARMS)[:3]}
TEXTS = ("table", "markdown", "latex", "html")


@pytest.fixture(scope="module")
def documented() -> Findings:
    """With documents, so that the two intervals of a loss differ."""
    return find(rows(arms=FEW, documents=60))


def made(name: str, findings: Findings) -> str:
    text = FORMATS[name].to_bytes(findings).decode()
    return re.sub(r"</?\w[^>]*>", "", text.replace(r"\%", "%").replace(r"\,", " ").replace("&#x27;", "'"))


@pytest.mark.parametrize("name", TEXTS)
def test_a_loss_has_one_interval_in_every_text_and_it_is_said_which(name: str, documented: Findings):
    text = made(name, documented)
    losses = [entry["bits_per_byte"] for arm in documented.summary["arms"].values() for entry in arm.values()]
    assert all(loss_text(loss) in text for loss in losses)
    assert not any(interval_text(loss) in text for loss in losses if interval_text(loss) != loss_text(loss))
    said = "Intervals are 95 %: of bits per byte over seeds, of all else over seeds and documents."
    assert said in re.sub(r"\s+", " ", text)


def test_the_csv_and_the_summary_have_both_intervals_by_name(documented: Findings):
    (line, *_) = csv.DictReader(io.StringIO(made("csv", documented)))
    loss = documented.summary["arms"][line["arm"]]["1e12"]["bits_per_byte"]
    for end in ("low", "high"):
        assert float(line[f"bits_per_byte_{end}"]) == loss[end]
        assert float(line[f"bits_per_byte_over_seeds_{end}"]) == loss["over_seeds"][end]
    assert loss["low"] < loss["over_seeds"]["low"]


def uneven() -> list[dict[str, Any]]:
    given = rows(arms=FEW)
    for row in given:
        if (row["arm"], row["seed"]) == ("graph", 2):
            row["seconds"] = {**row["seconds"], "train": 3.0 * row["seconds"]["train"]}
    return given


@pytest.mark.parametrize("name", ["table", "markdown", "latex", "html", "json", "csv", "svg"])
def test_every_format_says_that_seconds_under_uneven_load_mean_little(name: str):
    words = "Seconds were measured under uneven load and mean little"
    assert words in made(name, find(uneven()))
    assert words not in made(name, find(rows(arms=FEW)))


@pytest.mark.parametrize("name", TEXTS)
def test_an_untuned_study_is_called_so_and_a_finished_one_finished(name: str):
    text = made(name, find(own_study()))
    assert "Settings are untuned" in text
    assert "Arms ran at another width than the best one of dense" in text
    assert "dense (tuned)" not in text
    assert "Not there" not in text


@pytest.mark.parametrize("name", [*TEXTS, "csv", "json"])
def test_an_untuned_study_calls_nothing_tuned(name: str):
    given = rows(seeds=2, arms=FEW, budgets=(1e12, 3e12, 1e13))  # enough for tables by budget
    for row in given:
        row["settings"]["trials"] = 0
    text = FORMATS[name].to_bytes(find(given)).decode()
    if name == "json":  # what it says, not what its fields are called
        text = "\n".join(strings(json.loads(text)))
    text = re.sub(r"data:image/[^\"]*", "", text)  # pictures, in letters by chance
    text = text.replace("tuned=tuned(Path(...))", "")  # what to type
    assert "untuned dense" in text
    assert not re.findall(r"\b(?<!not )tuned.{,40}", text, re.IGNORECASE)
    assert "tuned dense" in made("csv", find(rows(arms=FEW)))


def strings(value: Any) -> Iterator[str]:
    """Every text in JSON, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def test_single_measurements_are_said_to_show_nothing_before_any_number():
    file = io.StringIO()
    print_table(summarize(rows(seeds=1, arms=FEW)), file)
    first = file.getvalue().splitlines()[0]
    assert "single measurements and show nothing yet" in first
    assert file.getvalue().count(first) == 1


@pytest.mark.parametrize("name", TEXTS)
def test_where_dense_ends_is_not_called_the_least_that_an_arm_is_worth(name: str):
    wide = {("ngram", "same tokens"): {"worth": 3.7, "read": 1.0}}
    findings = find(rows(arms=wide, budgets=(3e12,), noise=0.02, rng=5))
    cell = findings.summary["arms"]["ngram"]["3e12"]["train_flops"]
    assert cell["beyond"] == "point"
    assert cell["low"] < 0.9 * cell["multiplier"]
    text = made(name, findings)
    x = "" if name == "latex" else "x"
    assert f"beyond {cell['multiplier']:.2f}{x} [{cell['low']:.2f}, open]" in text
    assert "2.68 is the lower end of the interval" in re.sub(r"\s+", " ", text)
    assert f"at least {cell['multiplier']:.2f}{x} [" not in text
