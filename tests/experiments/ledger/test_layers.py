"""Every layer of PyG that a study may use is priced, and costs the same however it is run."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter, segment, spmm

from experiments.ledger import Ledger
from tests.experiments.ledger.settings import assert_one_bill, bill

N, D, C, H, E, D_EDGE = 12, 6, 4, 2, 30, 3
COUNTS = torch.tensor([0, 3, 6, 3])
TYPES = (["a", "b"], [("a", "to", "b"), ("b", "of", "a"), ("a", "is", "a")])


def edges(left=N, right=N):
    index = torch.arange(E)
    return torch.stack([index % left, (index + index // left + 1) % right])


def nodes():
    return torch.rand(N, D)


def mlp():
    return nn.Sequential(nn.Linear(D, C), nn.ReLU(), nn.Linear(C, C))


def adjacency(layout="csr"):
    source, target = edges()
    with torch.device("cpu"):
        coo = torch.sparse_coo_tensor(torch.stack([target, source]), torch.ones(E), (N, N)).coalesce()
    return {"coo": coo, "csr": coo.to_sparse_csr()}[layout]


PLAIN = {
    "GCN": lambda: pyg.GCNConv(D, C),
    "GAT": lambda: pyg.GATConv(D, C, H, dropout=0.5),
    "GATv2": lambda: pyg.GATv2Conv(D, C, H),
    "SAGE": lambda: pyg.SAGEConv(D, C),
    "SAGE max": lambda: pyg.SAGEConv(D, C, aggr="max", project=True),
    "SAGE many": lambda: pyg.SAGEConv(D, C, aggr=["mean", "max", "std", "median", "softmax", "mul", "min"]),
    "GIN": lambda: pyg.GINConv(mlp()),
    "APPNP": lambda: pyg.APPNP(3, 0.1, dropout=0.5),
    "SGC": lambda: pyg.SGConv(D, C, K=2),
    "Transformer": lambda: pyg.TransformerConv(D, C, H, beta=True, dropout=0.3),
    "Graph": lambda: pyg.GraphConv(D, C),
    "Cheb": lambda: pyg.ChebConv(D, C, 3),
    "TAG": lambda: pyg.TAGConv(D, C),
    "ARMA": lambda: pyg.ARMAConv(D, C),
    "Gated": lambda: pyg.GatedGraphConv(D, 2),
    "ResGated": lambda: pyg.ResGatedGraphConv(D, C),
    "Edge": lambda: pyg.EdgeConv(nn.Linear(2 * D, C)),
    "LG": lambda: pyg.LGConv(),
    "GEN": lambda: pyg.GENConv(D, C),
    "FiLM": lambda: pyg.FiLMConv(D, C),
}
WITH_EDGES = {
    "GINE": lambda: pyg.GINEConv(nn.Linear(D, C), edge_dim=D_EDGE),
    "NN": lambda: pyg.NNConv(D, C, nn.Linear(D_EDGE, D * C)),
    "GAT of edges": lambda: pyg.GATConv(D, C, H, edge_dim=D_EDGE),
    "GATv2 of edges": lambda: pyg.GATv2Conv(D, C, H, edge_dim=D_EDGE),
    "Transformer of edges": lambda: pyg.TransformerConv(D, C, H, edge_dim=D_EDGE),
    "CG": lambda: pyg.CGConv(D, D_EDGE),
    "GMM": lambda: pyg.GMMConv(D, C, D_EDGE, 2),
    "PNA": lambda: pyg.PNAConv(D, C, ["mean", "max", "std"], ["identity"], COUNTS, edge_dim=D_EDGE),
}
CASES = {name: lambda make=make: (make(), nodes(), edges()) for name, make in PLAIN.items()}
CASES |= {
    name: lambda make=make: (make(), nodes(), edges(), torch.rand(E, D_EDGE))
    for name, make in WITH_EDGES.items()
}
for name in ("GCN", "SGC", "Graph"):
    CASES[f"{name} weighted"] = lambda make=PLAIN[name]: (make(), nodes(), edges(), torch.rand(E))
for name in ("GCN", "SAGE", "SAGE max", "GIN", "Graph", "SGC", "APPNP"):
    CASES[f"{name} on CSR"] = lambda make=PLAIN[name]: (make(), nodes(), adjacency())


class Typed(nn.Module):
    """A layer of dicts of node types, called with tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, a, b, *given):
        return self.layer({"a": a, "b": b}, dict(zip(TYPES[1], given, strict=True)))


def typed(make):
    sizes = {"a": 5, "b": 7}
    given = [edges(sizes[source], sizes[target]) for source, _, target in TYPES[1]]
    return Typed(make()), *(torch.rand(size, D) for size in sizes.values()), *given


def batch():
    return torch.arange(N) // 6


def gps(**kwargs):
    return pyg.GPSConv(D, pyg.GINConv(nn.Linear(D, D)), heads=2, dropout=0.1, **kwargs)


CASES |= {
    "RGCN": lambda: (pyg.RGCNConv(D, C, 3), nodes(), edges(), torch.arange(E) % 3),
    "RGCN bases": lambda: (pyg.RGCNConv(D, C, 3, num_bases=2), nodes(), edges(), torch.arange(E) % 3),
    "FastRGCN": lambda: (pyg.FastRGCNConv(D, C, 3), nodes(), edges(), torch.arange(E) % 3),
    "RGAT": lambda: (pyg.RGATConv(D, C, 3), nodes(), edges(), torch.arange(E) % 3),
    "HGT": lambda: typed(lambda: pyg.HGTConv(D, 8, TYPES, 2)),
    "HAN": lambda: typed(lambda: pyg.HANConv(D, 8, TYPES, 2)),
    "Hetero": lambda: typed(lambda: pyg.HeteroConv({kind: pyg.SAGEConv(D, C) for kind in TYPES[1]})),
    "GPS": lambda: (gps(), nodes(), edges(), batch()),
    "GPS performer": lambda: (gps(attn_type="performer"), nodes(), edges(), batch()),
    "BatchNorm": lambda: (pyg.BatchNorm(D), nodes()),
    "LayerNorm": lambda: (pyg.LayerNorm(D), nodes(), batch()),
    "GraphNorm": lambda: (pyg.GraphNorm(D), nodes(), batch()),
    "PairNorm": lambda: (pyg.PairNorm(), nodes(), batch()),
}

NO_VALUES = "item|nonzero|unique"
NO_SPARSE = "no data"
CANNOT = {
    **{name: {"meta": NO_VALUES} for name in ("RGCN", "RGCN bases", "GPS", "LayerNorm")},
    **{name: {"meta": NO_VALUES} for name in ("GraphNorm", "PairNorm", "SAGE many")},
    "GPS performer": {"meta": "no data"},
    **{name: {"meta": NO_SPARSE} for name in CASES if name.endswith("CSR")},
    **{f"{name} on CSR": {"meta": NO_SPARSE, "autocast": "BF"} for name in ("GCN", "SAGE max")},
}
DIFFERS = {
    "APPNP on CSR": dict.fromkeys(("eval", "inference_mode"), "dropout takes the adjacency apart"),
    "Cheb": {"meta": "a mask without values drops no edge"},
}


@pytest.mark.parametrize("name", CASES)
def test_one_bill(name):
    assert_one_bill(CASES[name], CANNOT.get(name, {}), DIFFERS.get(name, {}))


@pytest.mark.parametrize("name", ["SAGE", "GIN", "Graph"])
def test_sparse_adjacency_costs_at_most_the_messages(name):
    def by_edges():
        return PLAIN[name](), nodes(), edges()

    def sparse(layout):
        return lambda: (PLAIN[name](), nodes(), adjacency(layout))

    products = {bill(case).matmul_flops for case in (sparse("coo"), sparse("csr"))}
    spared = {"SAGE": 2 * E * D, "GIN": 2 * E * D, "Graph": 2 * E * D}[name]
    # Forward and backward: a product over the stored entries where edges are gathered and summed.
    assert products == {bill(by_edges).matmul_flops + 2 * spared}


def test_edge_index_is_billed():
    source, order = edges(), edges()[1].argsort()
    index = EdgeIndex(source[:, order], sparse_size=(N, N), sort_order="col").fill_cache_()
    layer = pyg.SAGEConv(D, C)
    with Ledger() as ledger:
        layer(nodes(), index)
    assert ledger.flops >= 2 * E * D


@pytest.mark.parametrize("reduce", ["sum", "max", "min", "mul"])
def test_scatters_cost_an_operation_an_element(reduce):
    x, index = nodes(), batch()
    with Ledger() as ledger:
        scatter(x, index, dim_size=2, reduce=reduce)
    assert ledger.flops == N * D


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_segments_and_sparse_products_by_reduction(reduce):
    x = nodes().requires_grad_()
    with Ledger() as ledger:
        segment(x, torch.tensor([0, 4, 9, N]), reduce=reduce).sum().backward()
        spmm(adjacency(), x, reduce).sum().backward()
    assert ledger.matmul_flops == 4 * E * D
