"""Readers of retrieved graphs beside the same network on lists of edges, and node encoders beside plain PyG.

    python -m benchmarks.gnn --json docs/results/gnn.json
    python -m benchmarks.gnn --only graphs --cora FOLDER/cora.npz --json graphs.json

Readers take the neighbours that :class:`retrieval.ContextSource` finds for held-out source code among a million tokens
of training text: 4 rows of 256 tokens, 16 neighbours. The naive form is the definition: a PyG graph with nodes of its
own for every neighbour of every token. Both compute the same numbers from the same weights, which is checked first.
Training is forward and backward. ``GNN-LM's sizes`` are those of its paper (width 1,024, 8 heads, 3 layers, 32
neighbours, windows of three): FLOPs of a forward pass alone, counted by the ledger.

Node encoders train on Cora (public split) and on a random graph of 100,000 nodes and a million edges, beside the same
operators of PyG in a plain module: with the propagation matrix cached and, on Cora, features in CSR as well where that
is possible; on the random graph, lists of edges, PyG's usual form. An epoch is forward, backward and Adam.

Contestants take turns on one thread; figures are medians of CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.utils import to_undirected

from benchmarks.retrieval import tokens
from experiments.data.planetoid import read_planetoid
from experiments.ledger import Ledger
from experiments.training import tune_allocator
from gnn import GAT, GCN, GraphReader, HeteroReader, adjacency_matrix
from gnn.encoders.base import drop
from gnn.layers import HeteroAttention
from retrieval import ContextSource, Neighbors, Passages

STORED, VOCAB, ROWS, TIME, K, WIDTH = 1_000_000, 2048, 4, 256, 16, 128


def found(k: int, rows: int = ROWS) -> tuple[ContextSource, Neighbors]:
    """A store, and its answers to held-out text."""
    text = tokens("train")[:STORED].astype(np.uint16)
    source = ContextSource(Passages(text, np.arange(0, STORED + 1, 1000), vocab_size=VOCAB))
    asked = torch.from_numpy(tokens("valid")[: rows * TIME].astype(np.int64)).view(rows, TIME)
    return source, source.search(asked, k)


def opened(reader: nn.Module) -> nn.Module:
    """With its gate open, so that nothing is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return reader


def twins(build: Callable[..., nn.Module], switch: str) -> tuple[nn.Module, nn.Module]:
    """A reader and the same on lists of edges."""
    torch.manual_seed(0)
    fast, naive = (opened(build(**{switch: value})) for value in (True, False))
    naive.load_state_dict(fast.state_dict())
    return fast, naive


def step(reader: nn.Module, *inputs: Any) -> Tensor:
    """Forward and backward; what came out."""
    out = reader(*inputs)
    out.square().sum().backward()
    reader.zero_grad()
    return out.detach()


def race(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            begin = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def row(case: str, ours: float, peer: float, unit: str, repeats: int, peer_name: str) -> dict[str, Any]:
    """One line of the result; a ratio above one where ours is better."""
    ratio = ours / peer if unit.endswith("/s") else peer / ours
    print(f"{case:60s} {ours:11.4g} {peer:11.4g} {unit:13s} {ratio:7.2f} x {peer_name}", flush=True)
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
        "repeats": repeats,
    }


def flops(run: Callable[[], Any]) -> int:
    """Of a forward pass."""
    with Ledger() as ledger, torch.no_grad():
        run()
    return ledger.flops


def readers(repeats: int) -> Iterator[dict[str, Any]]:
    """Speed and FLOPs of both readers."""
    source, near = found(K)
    x = torch.nn.functional.rms_norm(torch.randn(ROWS, TIME, WIDTH), (WIDTH,))
    count = ROWS * TIME
    for name, build, switch, sides in (
        ("GraphReader", partial(GraphReader, WIDTH, VOCAB), "fused", (0, 2)),
        ("HeteroReader, 2 layers", partial(HeteroReader, WIDTH, VOCAB), "amortised", (1, 1)),
        ("HeteroReader, 3 layers", partial(HeteroReader, WIDTH, VOCAB, n_layers=3), "amortised", (1, 1)),
    ):
        fast, naive = twins(build, switch)
        inputs = x, near, source.passages.window(near.ids, *sides)
        torch.testing.assert_close(step(fast, *inputs), step(naive, *inputs), rtol=1e-3, atol=1e-4)
        runs = {kind: partial(step, reader, *inputs) for kind, reader in (("fast", fast), ("naive", naive))}
        seconds = race(runs, repeats)
        yield row(
            f"{name}: training",
            count / seconds["fast"],
            count / seconds["naive"],
            "tokens/s",
            repeats,
            "lists of edges",
        )
        spent = {
            kind: flops(partial(reader, *inputs)) / count
            for kind, reader in (("fast", fast), ("naive", naive))
        }
        yield row(f"{name}: forward", spent["fast"], spent["naive"], "FLOPs/token", 1, "lists of edges")
        if isinstance(fast, HeteroReader):
            fast.remember(source.passages.window(torch.arange(len(source.passages)), *sides))
            kept = flops(partial(fast, *inputs)) / count
            yield row(
                f"{name}: forward, store remembered", kept, spent["naive"], "FLOPs/token", 1, "lists of edges"
            )


def published(_: int) -> Iterator[dict[str, Any]]:
    """FLOPs at the sizes of GNN-LM."""
    source, near = found(32, rows=1)
    build = partial(
        HeteroReader,
        1024,
        VOCAB,
        n_layers=3,
        width=1024,
        reach=None,
        layer=partial(HeteroAttention, n_heads=8, softmax="per type"),
    )
    fast, naive = twins(build, "amortised")
    inputs = torch.randn(1, TIME, 1024), near, source.passages.window(near.ids, 1, 1)
    spent = [flops(partial(reader, *inputs)) / TIME for reader in (fast, naive)]
    yield row("GNN-LM's sizes: forward", *spent, "FLOPs/token", 1, "lists of edges")
    fast.remember(source.passages.window(torch.arange(20_000), 1, 1))
    few = Neighbors(near.scores, near.ids % 20_000, near.mask)
    kept = flops(lambda: fast(inputs[0], few, inputs[2])) / TIME
    yield row("GNN-LM's sizes: forward, store remembered", kept, spent[1], "FLOPs/token", 1, "lists of edges")


class Plain(nn.Module):
    """Operators of PyG one after the other, as its examples stack them."""

    def __init__(
        self, convs: list[nn.Module], activation: Callable[[Tensor], Tensor], dropout: float
    ) -> None:
        super().__init__()
        self.convs, self.activation, self.dropout = nn.ModuleList(convs), activation, dropout

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """Scores of each node."""
        for number, conv in enumerate(self.convs):
            x = self.activation(x) if number else x
            # The library's, since PyG has no dropout of a CSR matrix; of a dense one it is torch's.
            x = conv(drop(x, self.dropout, self.training), graph)
        return x


def epoch(network: nn.Module, x: Tensor, graph: Tensor, y: Tensor, trained: Tensor) -> Callable[[], None]:
    """A training step on the nodes ``trained``."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x, graph)[trained], y[trained]).backward()
        optimizer.step()

    return train


def alike(ours: nn.Module, inputs: tuple[Tensor, Tensor], peers: Mapping[str, tuple[nn.Module, Any]]) -> None:
    """Give the peers our weights and check that they say the same."""
    expected = ours.eval()(*inputs)
    for peer, given in peers.values():
        peer.load_state_dict(ours.state_dict())
        torch.testing.assert_close(peer.eval()(*given), expected, rtol=1e-3, atol=1e-4)
        peer.train()
    ours.train()


def citations(path: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Epochs on Cora, beside the fastest of PyG's forms."""
    data = read_planetoid(path)
    x, edges, y = data["x"], data["edge_index"], data["y"]
    dense, n_nodes, trained = x.to_dense(), x.shape[0], data["train_mask"]
    sizes = x.shape[1], int(y.max()) + 1
    # The matrix that PyG's ToSparseTensor(layout=torch.sparse_csr) puts in a graph.
    rows = adjacency_matrix(edges, n_nodes)

    def gcn() -> Plain:
        convs: list[nn.Module] = [GCNConv(sizes[0], 16, cached=True), GCNConv(16, sizes[1], cached=True)]
        return Plain(convs, torch.relu, 0.5)

    def gat() -> Plain:
        last = GATConv(64, sizes[1], concat=False, dropout=0.6)
        return Plain([GATConv(sizes[0], 8, heads=8, dropout=0.6), last], F.elu, 0.6)

    forms = {
        "PyG, list of edges": (dense, edges),
        "PyG, list of edges, CSR x": (x, edges),
        "PyG, CSR adjacency": (dense, rows),
        "PyG, CSR adjacency, CSR x": (x, rows),
    }
    for name, ours, build in (("GCN", GCN(*sizes), gcn), ("GAT", GAT(*sizes), gat)):
        graph = ours.matrix(edges, n_nodes)
        # PyG's GATConv adds loops to a list of edges only.
        peers = {
            form: (build(), given) for form, given in forms.items() if name == "GCN" or given[1] is edges
        }
        alike(ours, (x, graph), peers)
        runs = {"ours": epoch(ours, x, graph, y, trained)}
        runs |= {form: epoch(peer, *given, y, trained) for form, (peer, given) in peers.items()}
        seconds = race(runs, repeats)
        mine = seconds.pop("ours")
        for form, theirs in sorted(seconds.items(), key=itemgetter(1)):
            yield row(f"{name} on Cora: an epoch", 1 / mine, 1 / theirs, "epochs/s", repeats, form)


def large(repeats: int) -> Iterator[dict[str, Any]]:
    """Epochs on a random graph of 100,000 nodes and a million edges."""
    nodes, links, features, width, classes = 100_000, 1_000_000, 128, 128, 40
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, nodes, (2, links // 2), generator=generator)
    edges = to_undirected(drawn[:, drawn[0] != drawn[1]], num_nodes=nodes)
    x, y = torch.randn(nodes, features, generator=generator), torch.randint(0, classes, (nodes,))
    ours = GCN(features, classes, hidden=width)
    convs: list[nn.Module] = [GCNConv(features, width, cached=True), GCNConv(width, classes, cached=True)]
    peer, graph, every = Plain(convs, torch.relu, 0.5), ours.matrix(edges, nodes), torch.ones_like(y).bool()
    alike(ours, (x, graph), {"peer": (peer, (x, edges))})
    runs = {"ours": epoch(ours, x, graph, y, every), "peer": epoch(peer, x, edges, y, every)}
    seconds = race(runs, repeats)
    case = f"GCN, {nodes:,} nodes, {edges.shape[1]:,} edges: an epoch"
    yield row(
        case, 1 / seconds["ours"], 1 / seconds["peer"], "epochs/s", repeats, "PyG, list of edges, cached"
    )


def graphs(repeats: int, cora: Path | None = None) -> Iterator[dict[str, Any]]:
    """Training of node encoders; Cora where its file is given."""
    if cora is not None:
        yield from citations(cora, repeats)
    yield from large(min(repeats, 5))


PARTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "readers": readers,
    "published": published,
    "graphs": graphs,
}


def main() -> None:
    """Measure and print; ``--json`` keeps the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--cora", type=Path, metavar="FILE", help="cora.npz, for epochs on it")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each contestant (default 9)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    results = []
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            options = {"cora": arguments.cora} if part is graphs else {}
            for result in part(arguments.repeats, **options):
                results.append(result)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
