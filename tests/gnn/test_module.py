from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from gnn import NodeEncoder, NodeModule
from gnn.encoder import normalized_adjacency

CORA = Path(__file__).parents[3] / "shared" / "data" / "planetoid" / "cora.npz"


def fit(data, conv):
    seed_everything(0, verbose=False)
    module = NodeModule(NodeEncoder(conv, data.x.shape[1], 7))
    loader = DataLoader([data], collate_fn=itemgetter(0))
    trainer = Trainer(
        max_epochs=200,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, loader)
    (result,) = trainer.test(module, loader, verbose=False)
    return result["test_accuracy"]


@pytest.mark.skipif(not CORA.exists(), reason=f"Cora is not at {CORA.parent}")
def test_cora():
    raw = np.load(CORA)
    n, features = raw["x_shape"].tolist()
    x = torch.zeros(n, features)
    rows = np.repeat(np.arange(n), np.diff(raw["x_indptr"]))
    x[rows, raw["x_indices"].astype(np.int64)] = 1
    x = (x / x.sum(1, keepdim=True).clamp(min=1)).to_sparse_csr()
    edges = torch.from_numpy(raw["edges"].astype(np.int64)).t()
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    data = Data(x=x, y=torch.from_numpy(raw["y"].astype(np.int64)), edge_index=edges)
    for part, name in {"train": "train_idx", "val": "val_idx", "test": "test_idx"}.items():
        data[f"{part}_mask"] = torch.zeros(n, dtype=torch.bool)
        data[f"{part}_mask"][torch.from_numpy(raw[name].astype(np.int64))] = True
    data.adj_t = normalized_adjacency(edges, n)
    assert fit(data, partial(GCNConv, normalize=False)) >= 0.79
    data.adj_t = normalized_adjacency(edges[:, :0], n)  # without edges a GCN is a perceptron
    assert fit(data, partial(GCNConv, normalize=False)) < 0.62
