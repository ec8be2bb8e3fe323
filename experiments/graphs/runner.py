"""One run: a set, a split, a model and a seed become one row of results, with everything billed."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import AddRandomWalkPE

import gnn
from experiments.graphs.control import matched
from experiments.graphs.recipes import CONTROL, RECIPES, Recipe
from experiments.graphs.sources import Source
from experiments.ledger import Ledger, LedgerCallback
from experiments.revision import code_digest
from gnn import GraphDataModule, GraphEncoder, GraphModule, NodeDataModule, NodeModule, Selection
from gnn.adjacency import normalized_adjacency
from gnn.data import RowDataModule

__all__ = ["Run", "execute"]

# What every run's numbers depend on, for the digest of the code; beside it, the file of the encoder.
_DECISIVE = (
    *(
        "gnn.adjacency",
        "gnn.data.graph",
        "gnn.data.node",
        "gnn.data.rows",
        "gnn.rows",
        "gnn.selection",
        "gnn.splits",
    ),
    *("gnn.encoders.base", "gnn.encoders.blocks", "gnn.encoders.gin", "gnn.encoders.graph"),
    *("gnn.modules.graph", "gnn.modules.node", "gnn.modules.task"),
    *("experiments.data.csl", "experiments.data.graph_files", "experiments.data.heterophilous"),
    *("experiments.data.planetoid", "experiments.data.tu", "experiments.ledger"),
    *("experiments.graphs.control", "experiments.graphs.runner", "experiments.graphs.sources"),
)


@dataclass(frozen=True)
class Run:
    """A model on a set, with a seed.

    Args:
        source: The set's files.
        model: Name of its recipe.
        seed: Of the weights, the dropout and the order of graphs; chooses the split where there are several.
        control: Whether this is the perceptron whose FLOPs are matched with that model's run.
    """

    source: Source
    model: str
    seed: int
    control: bool = False

    @property
    def recipe(self) -> Recipe:
        """What is trained; of a control, before it is widened."""
        return RECIPES[self.source.name][CONTROL if self.control else self.model]

    @property
    def key(self) -> str:
        """Names the run and everything that was chosen for it."""
        recipes = RECIPES[self.source.name]
        told: list[Any] = [self.source.name, self.source.fingerprint(), self.model, self.seed]
        told += [asdict(recipes[model]) for model in (self.model, CONTROL)[: 1 + self.control]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def partner(self) -> Run:
        """Of a control, the run that it is matched with."""
        return replace(self, control=False)

    @property
    def code(self) -> str:
        """Digest of the code that the run's numbers depend on."""
        return code_digest((*_DECISIVE, getattr(gnn, self.recipe.encoder).__module__))

    def label(self) -> str:
        """``cora, gcn, seed 0``."""
        told = f"perceptron at the FLOPs of {self.model}" if self.control else self.model
        return f"{self.source.name}, {told}, seed {self.seed}"


@dataclass(frozen=True)
class _Prepared:
    """What a trainer is given, and a perceptron or network of any recipe for it."""

    module: Callable[[Recipe], gnn.NodeModule | gnn.GraphModule]
    data: Callable[[nn.Module], LightningDataModule]


def execute(
    run: Run, budget: int | None = None, epoch_done: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Trains a model and returns its row.

    Args:
        run: What is run.
        budget: FLOPs that a control is matched with.
        epoch_done: Called after every epoch.

    Raises:
        RunError: If no perceptron costs as much.
        GraphFileError: If a file is damaged.
    """
    begin = time.perf_counter()
    recipe, about = run.recipe, run.source.about
    before = Ledger()
    with before:
        prepared = _of_graphs(run, recipe) if about.of_graphs else _of_nodes(run, recipe)
    if budget is not None:
        # Reading the set is part of both bills.
        recipe = matched(recipe, budget - before.flops, lambda one: _epoch_flops(prepared, one, run.seed))
    torch.manual_seed(run.seed)
    module = prepared.module(recipe)
    with before:
        data = prepared.data(module.encoder)
    bill, selection = LedgerCallback(log=False, evaluation=True), Selection(about.measure)
    _fit(module, data, recipe, [bill, selection, _Epochs(epoch_done)])
    spent, chosen = bill.total(), selection.result()
    split, measure = chosen.pop("split"), chosen.pop("measure")
    return {
        "run": run.key,
        "set": run.source.name,
        "split": split,
        "model": run.model,
        "control": run.control,
        "seed": run.seed,
        "measure": measure,
        "rules": chosen,
        "epochs": int(chosen["last"]["epoch"]) + 1,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "train_flops": bill.train_flops,
        "train_bytes": bill.train_bytes,
        "preprocessing_flops": before.flops,
        "preprocessing_bytes": before.bytes,
        "selection_flops": spent.by_phase.get("validate", 0),
        "seconds": time.perf_counter() - begin,
        "recipe": asdict(recipe),
        "code": run.code,
    }


def _of_nodes(run: Run, recipe: Recipe) -> _Prepared:
    data = run.source.nodes(run.seed)
    n_nodes, target = int(data.num_nodes or 0), run.source.about.target
    n_outputs = 1 if target == "binary" else int(data["y"].max()) + 1
    if recipe.smooth:
        adjacency = normalized_adjacency(data["edge_index"], n_nodes)
        for _ in range(recipe.smooth):
            data["x"] = adjacency @ data["x"]
    data = _walked(data, recipe)
    n_features = data["x"].shape[1]

    def module(recipe: Recipe) -> NodeModule:
        encoder = getattr(gnn, recipe.encoder)(n_features, n_outputs, **recipe.options)
        return NodeModule(
            encoder,
            target=target,  # type: ignore[arg-type]
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            penalized=recipe.penalized,
        )

    def loaded(encoder: Any) -> LightningDataModule:
        if encoder.hears == "nothing":
            return RowDataModule(data, seed=run.seed)
        return NodeDataModule(data, matrix=encoder.matrix)

    return _Prepared(module, loaded)


def _of_graphs(run: Run, recipe: Recipe) -> _Prepared:
    graphs, split = run.source.graphs(run.seed)
    graphs = [_walked(graph, recipe) for graph in graphs]
    n_features, n_outputs = graphs[0]["x"].shape[1], 1 + max(int(graph["y"].max()) for graph in graphs)

    def module(recipe: Recipe) -> GraphModule:
        width = int(recipe.options["hidden"])
        encoder = getattr(gnn, recipe.encoder)(n_features, width, **recipe.options)
        return GraphModule(
            GraphEncoder(encoder, width, n_outputs, pool=recipe.pool),
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            penalized=recipe.penalized,
        )

    def loaded(_: nn.Module) -> LightningDataModule:
        return GraphDataModule(graphs, split, batch_size=recipe.batch_size, seed=run.seed)

    return _Prepared(module, loaded)


def _walked(data: Data, recipe: Recipe) -> Data:
    return AddRandomWalkPE(recipe.walk, attr_name=None)(data) if recipe.walk else data


def _epoch_flops(prepared: _Prepared, recipe: Recipe, seed: int) -> int:
    """FLOPs of an epoch, after the first: that one makes the optimizer's state."""
    torch.manual_seed(seed)
    module = prepared.module(recipe)
    data, optimizer = prepared.data(module.encoder), module.configure_optimizers()
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    spent = 0
    for _ in range(2):
        with Ledger() as ledger:
            for number, batch in enumerate(data.train_dataloader()):
                optimizer.zero_grad()
                module.training_step(batch, number).backward()
                optimizer.step()
        spent = ledger.flops
    return spent


def _fit(module: Any, data: LightningDataModule, recipe: Recipe, callbacks: list[Callback]) -> None:
    if recipe.patience is not None:
        callbacks = [*callbacks, EarlyStopping("val_loss", patience=recipe.patience, check_finite=False)]
    told = logging.getLogger("lightning.pytorch")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Of loaders without workers, and of CSR being in beta: neither says anything about the run.
            warnings.simplefilter("ignore")
            Trainer(
                accelerator="cpu",
                max_epochs=recipe.epochs,
                callbacks=callbacks,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(module, datamodule=data)
    finally:
        told.setLevel(level)


class _Epochs(Callback):
    def __init__(self, done: Callable[[], None] | None) -> None:
        self.done = done

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.done is not None:
            self.done()
