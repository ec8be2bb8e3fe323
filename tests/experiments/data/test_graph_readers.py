from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data.attributed import read_attributed
from experiments.data.csl import NODES, SKIPS, circular_skip_link, csl_graphs
from experiments.data.graph_files import GraphFileError, row_normalized
from experiments.data.heterophilous import read_heterophilous
from experiments.data.planetoid import read_planetoid
from experiments.data.tu import read_tu

FILES = Path(__file__).parents[4] / "shared" / "data"
CITATIONS = {
    "edges": np.array([[0, 1], [1, 2], [1, 2], [3, 3]], np.int32),
    "x_indptr": np.array([0, 2, 3, 3, 5], np.int32),
    "x_indices": np.array([0, 2, 1, 0, 1], np.uint16),
    "x_shape": np.array([4, 3]),
    "y": np.array([0, 1, -1, 1], np.int16),
    "train_idx": np.array([0], np.int32),
    "val_idx": np.array([1], np.int32),
    "test_idx": np.array([3], np.int32),
}
WEB = {
    "node_features": np.ones((4, 2), np.float32),
    "node_labels": np.array([0, 1, 0, 1]),
    "edges": np.array([[0, 1], [1, 0], [2, 1]]),
    "train_masks": np.array([[True, False, False, True], [False, True, True, False]]),
    "val_masks": np.array([[False, True, False, False], [True, False, False, False]]),
    "test_masks": np.array([[False, False, True, False], [False, False, False, True]]),
}
ATTRIBUTED = {
    "adj_indptr": np.array([0, 2, 2, 3], np.int32),
    "adj_indices": np.array([0, 1, 1], np.int32),
    "x_indptr": np.array([0, 1, 1, 3], np.int32),
    "x_indices": np.array([1, 0, 1], np.uint16),
    "x_data": np.array([2.0, 1.0, 3.0], np.float32),
    "x_shape": np.array([3, 2]),
    "y": np.array([0, 1, 1], np.int16),
}


def saved(folder, arrays, **changed):
    path = folder / "graph.npz"
    np.savez(path, **{**arrays, **changed})
    return path


def test_a_citation_network(tmp_path):
    data = read_planetoid(saved(tmp_path, CITATIONS))
    assert data.x.layout is torch.sparse_csr
    torch.testing.assert_close(
        data.x.to_dense(),
        torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0], [0.5, 0.5, 0]]),
    )
    assert sorted(data.edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert data.y.tolist() == [0, 1, -1, 1]
    assert (data["split"], data.test_mask.tolist()) == ("public", [False, False, False, True])
    bags = read_planetoid(tmp_path / "graph.npz", normalize=False)
    assert bags.x.values().tolist() == [1.0] * 5


def test_a_heterophilous_graph(tmp_path):
    data = read_heterophilous(saved(tmp_path, WEB), 1)
    assert data["split"] == "fold 1 of 2"
    assert data.train_mask.tolist() == [False, True, True, False]
    assert sorted(data.edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    with pytest.raises(GraphFileError, match="splits 0 to 1, and 2 is asked for"):
        read_heterophilous(tmp_path / "graph.npz", 2)


def test_an_attributed_graph_has_no_split(tmp_path):
    data = read_attributed(saved(tmp_path, ATTRIBUTED))
    torch.testing.assert_close(data.x.to_dense(), torch.tensor([[0.0, 2], [0, 0], [1, 3]]))
    assert sorted(data.edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert "split" not in data
    ones = {name: array for name, array in ATTRIBUTED.items() if name != "x_data"}
    assert read_attributed(saved(tmp_path, ones)).x.values().tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("read", "arrays", "changed", "says"),
    [
        (read_planetoid, CITATIONS, {"x_indptr": np.array([0, 2, 3, 3, 6])}, "do not divide 5 entries"),
        (read_planetoid, CITATIONS, {"x_shape": np.array([4, 2])}, "column 2 of 2"),
        (read_planetoid, CITATIONS, {"y": np.zeros(3, np.int16)}, "4 rows of features and 3 classes"),
        (read_planetoid, CITATIONS, {"edges": np.array([[0, 9]])}, "beyond the 4"),
        (read_planetoid, CITATIONS, {"y": np.array([{}, 1], object)}, "plain arrays"),
        (read_attributed, ATTRIBUTED, {"y": np.zeros(2, np.int16)}, "classes or edges of others"),
        (
            lambda path: read_heterophilous(path, 0),
            WEB,
            {"node_labels": np.zeros(3)},
            "masks of 4 nodes",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, read, arrays, changed, says):
    with pytest.raises(GraphFileError, match=says):
        read(saved(tmp_path, arrays, **changed))


@pytest.mark.parametrize("read", [read_planetoid, read_attributed, lambda path: read_heterophilous(path, 0)])
def test_files_that_are_none(tmp_path, read):
    with pytest.raises(GraphFileError, match="is not there"):
        read(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(GraphFileError, match="cannot be read as plain arrays"):
        read(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(1))
    with pytest.raises(GraphFileError, match="; it holds a"):
        read(tmp_path / "other.npz")


def test_reading_runs_nothing(tmp_path):
    class Shout:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "graph.npz"
    np.savez(path, **{**CITATIONS, "y": np.array([Shout()], object)})
    with pytest.raises(GraphFileError):
        read_planetoid(path)
    path.write_bytes(pickle.dumps(Shout()))
    with pytest.raises(GraphFileError):
        read_planetoid(path)
    assert not (tmp_path / "ran").exists()


def test_an_empty_row_stays_empty():
    x = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).to_sparse_csr()
    assert row_normalized(x).to_dense().tolist() == [[0.0, 0.0], [0.25, 0.75]]


@pytest.mark.skipif(not (FILES / "planetoid").exists(), reason=f"no files in {FILES}")
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "words"), [("cora", 2708, 5278, 49216), ("citeseer", 3327, 4552, 105165)]
)
def test_published_files_and_plain_arrays_are_the_same_graph(name, nodes, edges, words):
    plain = read_planetoid(FILES / "planetoid" / f"{name}.npz")
    published = read_planetoid(FILES / "planetoid" / f"ind.{name}")
    assert plain.num_nodes == nodes
    assert plain.num_edges == published.num_edges == 2 * edges
    assert plain.x.values().numel() == words
    torch.testing.assert_close(plain.x.to_dense(), published.x.to_dense())
    known = plain.y >= 0
    assert torch.equal(plain.y[known], published.y[known])
    assert set(map(tuple, plain.edge_index.t().tolist())) == set(
        map(tuple, published.edge_index.t().tolist())
    )
    for part in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(plain[part], published[part])
    with pytest.raises(GraphFileError, match=r"has no ind\.pubmed\.x"):
        read_planetoid(FILES / "planetoid" / "ind.pubmed")


@pytest.mark.skipif(not (FILES / "graphs-heterophilous").exists(), reason=f"no files in {FILES}")
def test_minesweeper():
    data = read_heterophilous(FILES / "graphs-heterophilous" / "minesweeper.npz", 9)
    assert (data.num_nodes, data.num_edges, data["split"]) == (10000, 2 * 39402, "fold 9 of 10")
    assert int(data.train_mask.sum()) == 5000


def test_circular_skip_links():
    graphs = csl_graphs(copies=2, seed=4)
    assert torch.cat([graph.y for graph in graphs]).tolist() == [
        label for label in range(10) for _ in range(2)
    ]
    adjacency = torch.zeros(NODES, NODES)
    adjacency[tuple(graphs[3].edge_index)] = 1
    assert torch.equal(adjacency, adjacency.t())
    assert adjacency.sum(0).unique().tolist() == [4.0]
    plain = torch.zeros(NODES, NODES)
    plain[tuple(circular_skip_link(SKIPS[1]).edge_index)] = 1
    assert not torch.equal(adjacency, plain)  # nodes are in another order
    torch.testing.assert_close(
        torch.linalg.eigvalsh(adjacency), torch.linalg.eigvalsh(plain), atol=1e-4, rtol=0
    )
    assert plain[0].nonzero().flatten().tolist() == [1, 3, 38, 40]
    again = csl_graphs(copies=2, seed=4)
    assert all(torch.equal(one.edge_index, two.edge_index) for one, two in zip(graphs, again, strict=True))
    for skip, nodes in ((1, 41), (40, 41), (4, 8)):
        with pytest.raises(ValueError, match="skip"):
            circular_skip_link(skip, nodes)


def test_a_tu_set(tmp_path):
    # A triangle and a pair, with labels of nodes.
    files = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n1, 3\n3, 1\n4, 5\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n",
        "graph_labels": "-1\n1\n",
        "node_labels": "0\n1\n0\n2\n2\n",
    }
    with pytest.raises(GraphFileError, match=r"SET_A\.txt, SET_graph_indicator\.txt"):
        read_tu(tmp_path, "SET")
    for name, text in files.items():
        (tmp_path / f"SET_{name}.txt").write_text(text)
    triangle, pair = read_tu(tmp_path, "SET")
    assert (triangle.num_nodes, triangle.num_edges, triangle.y.tolist()) == (3, 6, [0])
    assert pair.edge_index.tolist() == [[0, 1], [1, 0]]
    assert pair.x.tolist() == [[0.0, 0.0, 1.0]] * 2
    assert pair.y.tolist() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"SET_{name}.txt" for name in files)
