from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.errors import RunError
from experiments.graphs.control import matched
from experiments.graphs.recipes import RECIPES, Recipe
from experiments.graphs.runner import Run, execute
from experiments.graphs.sources import find
from experiments.ledger import Ledger
from gnn import MLP, NodeModule, normalized_adjacency
from gnn.rows import node_rows
from gnn.selection import RULES
from tests.experiments.graphs.tiny import NODES, WORDS, folder, proteins

__all__ = ["folder", "proteins"]


def test_a_row_bills_training_and_what_goes_before_and_after_it(folder):
    source = find("cora", folder)
    row = execute(Run(source, "gcn", 0))
    assert (row["set"], row["split"], row["model"], row["seed"], row["measure"]) == (
        "cora",
        "public",
        "gcn",
        0,
        "accuracy",
    )
    assert tuple(row["rules"]) == RULES
    assert all(0 <= row["rules"][rule]["test_accuracy"] <= 1 for rule in RULES)
    assert row["epochs"] == 3
    assert row["parameters"] == WORDS * 16 + 16 + 16 * 3 + 3
    assert min(row[f"{what}_flops"] for what in ("train", "preprocessing", "selection")) > 0
    again = execute(Run(source, "gcn", 0))
    assert again["rules"] == row["rules"]
    assert again["train_flops"] == row["train_flops"]
    assert execute(Run(source, "gcn", 1))["rules"] != row["rules"]


def test_smoothing_and_walks_are_billed_before_training(folder):
    source = find("cora", folder)
    smoothed, plain = (execute(Run(source, model, 0)) for model in ("sgc", "mlp"))
    data = source.nodes(0)
    adjacency = normalized_adjacency(data.edge_index, NODES)
    with Ledger() as ledger:
        adjacency @ (adjacency @ data.x)
    assert ledger.flops > 0
    assert smoothed["preprocessing_flops"] > plain["preprocessing_flops"] + ledger.flops
    told, walked = (execute(Run(find("csl", None), model, 0)) for model in ("gin", "gin+rwse"))
    # 150 graphs, 19 products of 41 x 41 matrices each.
    assert walked["preprocessing_flops"] - told["preprocessing_flops"] > 150 * 19 * 2 * 41**3
    assert told["split"] == "fold 0 of 5, seed 0"


def test_a_perceptron_computes_only_the_nodes_it_is_asked_for(folder):
    source = find("cora", folder)
    data, module = source.nodes(0), NodeModule(MLP(WORDS, 3))
    module.log_dict = lambda *_, **__: None
    spent = []
    for batch in (data, node_rows(data, data.train_mask.nonzero().squeeze(1))):
        with Ledger() as ledger:
            module.training_step(batch, 0).backward()
        spent.append(ledger.flops)
    optimizer = module.configure_optimizers()
    optimizer.step()
    with Ledger() as adam:
        optimizer.step()
    trained = execute(Run(source, "mlp", 0))["train_flops"] / 3 - adam.flops
    assert trained == pytest.approx(spent[1], rel=0.1)
    assert trained < spent[0] / 3


def test_the_control_costs_what_the_graph_network_costs(folder):
    source = find("cora", folder)
    run = Run(source, "gat", 0)
    row = execute(run)
    budget = row["train_flops"] + row["preprocessing_flops"]
    control = execute(replace(run, control=True), budget)
    assert control["control"]
    assert control["recipe"]["options"]["hidden"] > RECIPES["cora"]["mlp"].options["hidden"]
    spent = control["train_flops"] + control["preprocessing_flops"]
    assert abs(spent / budget - 1) < 0.05


def test_a_control_is_trained_for_less_where_it_costs_too_much():
    recipe = Recipe("MLP", {"hidden": 16}, epochs=100)

    def epoch_flops(one):
        return 10 * one.options["hidden"]

    assert matched(recipe, 8_000, epoch_flops).epochs == 50
    assert matched(recipe, 1, epoch_flops).epochs == 1
    wide = matched(recipe, 100_000, epoch_flops)
    assert (wide.epochs, wide.options["hidden"]) == (100, 100)
    with pytest.raises(RunError, match="--no-control"):
        matched(recipe, 10**9, epoch_flops)


@pytest.mark.parametrize("model", ["tuned-gat", "gcn", "mlp"])
def test_official_splits_take_turns(folder, model):
    source = find("minesweeper", folder)
    rows = [execute(Run(source, model, seed)) for seed in (1, 11)]
    assert {row["split"] for row in rows} == {"fold 1 of 10"}
    assert {row["measure"] for row in rows} == {"roc_auc"}


@pytest.mark.parametrize("model", ["mlp", "gin"])
def test_a_set_of_text_files_is_run_by_folds(folder, proteins, model):
    row = execute(Run(find("proteins", proteins.parent), model, 3))
    assert row["split"] == "fold 3 of 10, seed 0"
    assert row["train_flops"] > 0


def test_what_is_changed_is_another_run(folder, monkeypatch):
    source = find("cora", folder)
    runs = [
        Run(source, "gcn", 0),
        Run(source, "gcn", 1),
        Run(source, "sage", 0),
        Run(source, "gcn", 0, control=True),
    ]
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys)
    assert runs[3].partner.key == keys[0]
    monkeypatch.setitem(RECIPES["cora"], "mlp", replace(RECIPES["cora"]["mlp"], lr=0.5))
    assert [run.key == key for run, key in zip(runs, keys, strict=True)] == [True, True, True, False]
    with (folder / "citations" / "cora.npz").open("ab") as file:
        file.write(b" ")
    assert runs[0].key != keys[0]
