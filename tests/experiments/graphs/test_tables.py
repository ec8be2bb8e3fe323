from __future__ import annotations

from experiments.graphs.tables import tables


def row(model, seed, test, control=False, **changed):
    rules = {
        rule: {"epoch": 1, "val_loss": 1.0, "test_accuracy": test + shift}
        for rule, shift in (("last", 0.0), ("best_val_loss", 0.01), ("best_val_measure", 0.03))
    }
    made = {
        **{"set": "cora", "split": "public", "model": model, "seed": seed, "control": control},
        **{"measure": "accuracy", "rules": rules, "train_flops": 10**9, "preprocessing_flops": 0},
        **{"selection_flops": 5 * 10**8, "seconds": 2.0},
    }
    return {**made, **changed}


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_model_stands_beside_what_was_published_and_a_perceptron_of_its_seeds():
    rows = [
        row("gcn", 0, 0.80),
        row("gcn", 1, 0.82),
        row("gcn", 0, 0.55, control=True),
        row("gcn", 1, 0.56, control=True),
    ]
    compared, rules = tables(rows, "best_val_loss").split("**cora: what the rule")
    assert "split public" in compared
    assert "epoch chosen by best_val_loss" in compared
    assert cells(compared, "|gcn") == [
        "gcn",
        "82.00 ± 1.41",
        "81.5 (Kipf 2017); 81.5 ± 0.6 (Fey 2019)",
        "2",
        "1.00 GFLOP",
        "0 FLOP",
        "500 MFLOP",
        "2.0",
        "56.50 ± 0.71",
        "+25.50 ± 0.71",
    ]
    assert cells(rules, "|gcn") == ["gcn", "81.00 ± 1.41", "82.00 ± 1.41", "84.00 ± 1.41", "3.00"]


def test_the_rule_that_is_named_is_the_one_reported():
    rows = [row("gcn", 0, 0.80)]
    assert cells(tables(rows, "last").split("\n\n**cora: what")[0], "|gcn")[1] == "80.00"
    assert cells(tables(rows, "best_val_measure").split("\n\n**cora: what")[0], "|gcn")[1] == "83.00"


def test_a_perceptron_that_costs_something_else_is_said_to():
    rows = [row("gcn", 0, 0.80), row("gcn", 0, 0.55, control=True, train_flops=5 * 10**8), row("mlp", 0, 0.5)]
    compared = tables(rows, "last").split("\n\n**cora: what")[0]
    assert cells(compared, "|gcn")[-2:] == ["55.00 at 0.50 of them", "+25.00"]
    assert cells(compared, "|mlp")[-2:] == ["-", "-"]


def test_sets_and_splits_are_named():
    rows = [row("gin", fold, 0.1, set="csl", split=f"fold {fold} of 5, seed 0") for fold in range(5)]
    told = tables([*rows, row("sage", 0, 0.8)], "last")
    assert "csl, split fold 0 of 5, seed 0 and 4 others" in told
    assert cells(told.split("**cora")[1], "|sage")[2] == "-"
