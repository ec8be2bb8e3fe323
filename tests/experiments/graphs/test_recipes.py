from __future__ import annotations

import inspect

import pytest

import gnn
from experiments.graphs.recipes import CONTROL, PUBLISHED, RECIPES, SETS
from gnn import GraphEncoder

EVERY = [(name, model) for name, of_set in RECIPES.items() for model in of_set]


def size(model, name="cora", features=1433, classes=7):
    recipe = RECIPES[name][model]
    encoder = getattr(gnn, recipe.encoder)(features, classes, **recipe.options)
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mlp", 1433 * 16 + 16 + 16 * 7 + 7),
        # The same matrices as the perceptron: propagation has no parameters.
        ("gcn", 1433 * 16 + 16 + 16 * 7 + 7),
        # Each node has a matrix of its own, beside its neighbours'.
        ("sage", 2 * 1433 * 16 + 16 + 2 * 16 * 7 + 7),
        ("sgc", 1433 * 7 + 7),
        ("appnp", 1433 * 64 + 64 + 64 * 7 + 7),
        # 8 heads of 8, two vectors of attention a head; then one head.
        ("gat", 1433 * 64 + 2 * 64 + 64 + 64 * 7 + 2 * 7 + 7),
    ],
)
def test_sizes_on_cora_are_the_papers(model, expected):
    assert size(model) == expected


def test_the_tuned_network_has_the_layers_of_its_script():
    recipe = RECIPES["minesweeper"]["tuned-gcn"]
    block = 64 * 64 + 64 + 2 * 64
    assert size("tuned-gcn", "minesweeper", 7, 1) == 7 * 64 + 64 + 12 * block + 64 + 1
    assert (recipe.epochs, recipe.lr, recipe.weight_decay) == (2000, 0.01, 0.0)


def test_csl_is_told_with_a_hundred_thousand_parameters():
    recipe = RECIPES["csl"]["gin"]
    encoder = GraphEncoder(gnn.GIN(1, 110, **recipe.options), 110, 10)
    assert 90_000 < sum(parameter.numel() for parameter in encoder.parameters()) < 125_000


@pytest.mark.parametrize(("name", "model"), EVERY)
def test_every_recipe_names_what_there_is(name, model):
    recipe = RECIPES[name][model]
    assert set(recipe.options) <= set(inspect.signature(getattr(gnn, recipe.encoder)).parameters)
    assert recipe.epochs > 0
    assert recipe.penalized in ("first", "all")


def test_every_set_has_recipes_and_what_was_published_belongs_to_one():
    assert set(SETS) == set(RECIPES)
    assert {(name, model) for name, of_set in PUBLISHED.items() for model in of_set} <= set(EVERY)
    assert all(0 <= one.mean <= 100 for of_set in PUBLISHED.values() for of in of_set.values() for one in of)
    assert all(CONTROL in RECIPES[name] for name, about in SETS.items() if not about.of_graphs)
