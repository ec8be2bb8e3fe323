from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from gnn import RowDataModule, random_split
from gnn.evaluating import evaluating
from gnn.rows import node_rows, rows_of, subgraph_of
from tests.gnn.graphs import random_graph


@pytest.mark.parametrize("nodes", [[4, 0, 4, 10], [], [10], list(range(11))])
def test_rows_of_a_sparse_matrix_are_those_of_a_dense_one(nodes):
    x, _ = random_graph()
    nodes = torch.tensor(nodes, dtype=torch.int64)
    found = rows_of(x.to_sparse_csr(), nodes)
    assert found.layout is torch.sparse_csr
    assert torch.equal(found.to_dense(), x[nodes])
    assert torch.equal(rows_of(x, nodes), x[nodes])


def test_a_graph_is_cut_to_some_nodes():
    x, edges = random_graph()
    data = Data(x=x.to_sparse_csr(), edge_index=edges, y=torch.arange(11), split="public")
    data.adj_t = torch.eye(11).to_sparse_csr()
    nodes = torch.tensor([1, 2, 5, 9])
    for given in (node_rows(data, nodes), subgraph_of(data, nodes)):
        assert torch.equal(given.x.to_dense(), x[nodes])
        assert given.y.tolist() == nodes.tolist()
        assert given.split == "public"
        assert "adj_t" not in given
    assert node_rows(data, nodes).edge_index.shape == (2, 0)
    kept = {(a, b) for a, b in edges.t().tolist() if a in nodes.tolist() and b in nodes.tolist()}
    assert kept
    assert {tuple(pair) for pair in nodes[subgraph_of(data, nodes).edge_index].t().tolist()} == kept


def test_batches_are_the_nodes_of_a_mask_in_an_order_of_their_own():
    x, edges = random_graph(40, 80)
    data, split = Data(x=x, edge_index=edges, y=torch.arange(40)), random_split(40, 3)
    loaded = RowDataModule(data, split, batch_size=10)
    batches = list(loaded.train_dataloader())
    assert [len(batch.y) for batch in batches] == [10, 10, 4]
    order = torch.cat([batch.y for batch in batches])
    assert order.sort().values.tolist() == split.train.sort().values.tolist()
    assert not torch.equal(order, order.sort().values)
    assert all(torch.equal(batch.x, x[batch.y]) and batch.train_mask.all() for batch in batches)
    again = [batch.y for batch in RowDataModule(data, split, batch_size=10).train_dataloader()]
    assert torch.equal(torch.cat(again), order)
    (validated,), (tested,) = loaded.val_dataloader(), loaded.test_dataloader()
    assert set(validated.y[validated.val_mask].tolist()) == set(split.val.tolist())
    assert set(validated.y[validated.test_mask].tolist()) == set(split.test.tolist())
    assert set(tested.y.tolist()) == set(split.test.tolist())


def test_rows_refuse_what_names_no_node():
    x, edges = random_graph(40, 80)
    data = random_split(40, 3).onto(Data(x=x, edge_index=edges, y=torch.arange(40)))
    with pytest.raises(ValueError, match="no 'soft_mask'"):
        RowDataModule(data, train_on="soft_mask")
    data.soft_mask = torch.zeros(40, dtype=torch.bool)
    with pytest.raises(ValueError, match="soft_mask names no node"):
        RowDataModule(data, train_on="soft_mask")
    with pytest.raises(ValueError, match="have no name"):
        RowDataModule(Data(x=x, edge_index=edges))


def test_parts_are_as_they_were_after_an_evaluation():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    with pytest.raises(ValueError, match="expected 2D"), evaluating(module):
        module(torch.zeros(2))
    assert module.training
