from __future__ import annotations

import dataclasses

import pytest
import torch

from gnn import neighbor_graph
from gnn.graph import window_sources
from retrieval.neighbors import Neighbors
from tests.gnn.inputs import random_inputs


def naive_graph(neighbors, window, before):
    """Nodes and edges by four loops, to compare sets with."""
    nodes, retrieved, joined = {}, [], []
    for b in range(window.shape[0]):
        for t in range(window.shape[1]):
            for j in range(window.shape[2]):
                for o in range(window.shape[3]):
                    if neighbors.mask[b, t, j] and window[b, t, j, o]:
                        nodes[b, t, j, o] = len(nodes)
    for (b, t, j, o), node in nodes.items():
        token = b * window.shape[1] + t
        retrieved.append((node, token, round(neighbors.scores[b, t, j].item(), 4), j, o - before))
        for step in (-1, 1):
            if (b, t, j, o + step) in nodes:
                joined.append((nodes[b, t, j, o + step], node, step))
    return nodes, retrieved, joined


def test_graph_holds_what_the_loops_find():
    _, neighbors, window = random_inputs()
    graph = neighbor_graph(neighbors, window, before=1)
    nodes, retrieved, joined = naive_graph(neighbors, window, before=1)
    assert graph.validate(raise_on_error=True)
    assert graph["entry"].token.tolist() == [window[at].item() for at in nodes]
    assert graph["entry"].num_nodes == len(nodes)
    assert graph["entry"].id.tolist() == [neighbors.ids[b, t, j] + o - 1 for b, t, j, o in nodes]
    assert (graph["entry"].visible_from == 0).all()
    edges = graph["entry", "retrieved", "token"]
    found = zip(
        *edges.edge_index.tolist(),
        edges.score.tolist(),
        edges.rank.tolist(),
        edges.offset.tolist(),
        strict=True,
    )
    assert [(s, t, round(score, 4), rank, offset) for s, t, score, rank, offset in found] == retrieved
    edges = graph["entry", "window", "entry"]
    assert sorted(zip(*edges.edge_index.tolist(), edges.step.tolist(), strict=True)) == sorted(joined)


def test_no_edge_leaves_a_token_unless_asked():
    _, neighbors, window = random_inputs()
    assert {kind[0] for kind in neighbor_graph(neighbors, window).edge_types} == {"entry"}
    order = neighbor_graph(neighbors, window, reach=1)["token", "before", "token"].edge_index
    assert order.tolist() == [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("reach", [2, None])
def test_tokens_hear_their_row_and_document(reach):
    _, neighbors, window = random_inputs()
    documents = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    found = neighbor_graph(neighbors, window, reach=reach, documents=documents)["token", "before", "token"]
    wanted = [
        (6 * row + s, 6 * row + t)
        for row in range(2)
        for t in range(6)
        for s in range(max(0, t - (reach or 6)), t)
        if documents[row, s] == documents[row, t]
    ]
    assert sorted(zip(*found.edge_index.tolist(), strict=True)) == sorted(wanted)


def test_entries_are_unseen_before_their_time():
    _, neighbors, window = random_inputs()
    late = torch.tensor(
        [-1, 0, 1, 2]
    )  # of each token's neighbours, one is visible just in time and one just not
    stamps = (torch.arange(6).view(1, 6, 1) + late).expand(2, 6, 4)
    neighbors, window = (
        dataclasses.replace(neighbors, mask=torch.ones_like(neighbors.mask)),
        window.clamp(min=1),
    )
    graph = neighbor_graph(neighbors, window, visible_from=stamps)
    entry, token = graph["entry", "retrieved", "token"].edge_index
    assert graph["entry"].num_nodes == 2 * 6 * 2 * 4
    assert (graph["entry"].visible_from[entry] <= graph["token"].position[token]).all()
    poisoned = torch.where((late > 0).view(4, 1), 7, window)
    again = neighbor_graph(neighbors, poisoned, visible_from=stamps)
    assert torch.equal(graph["entry"].token, again["entry"].token)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_shuffling_is_a_derangement_among_neighbors_of_one_token(seed):
    real = random_inputs(k=6)[1].mask.unsqueeze(-1).expand(-1, -1, -1, 3)
    sources = window_sources(real, "shuffled", seed)
    for alive, row in zip(real.any(-1).flatten(0, 1), sources.flatten(0, 1), strict=True):
        own = alive.nonzero().squeeze(1)
        assert sorted(row[own].tolist()) == own.tolist()
        assert len(own) < 2 or (row[own] != own).all()


def test_shuffled_edges_stay_with_their_token_and_keep_their_direction():
    _, neighbors, window = random_inputs(k=6)
    straight, crossed = (neighbor_graph(neighbors, window, before=1, edges=e) for e in ("window", "shuffled"))
    source, target = crossed["entry", "window", "entry"].edge_index
    token = crossed["entry", "retrieved", "token"].edge_index[1]
    assert torch.equal(token[source], token[target])
    offset = crossed["entry"].offset
    assert torch.equal(offset[source] - offset[target], crossed["entry", "window", "entry"].step)
    assert set(zip(source.tolist(), target.tolist(), strict=True)) != set(
        zip(*straight["entry", "window", "entry"].edge_index.tolist(), strict=True)
    )
    lonely = neighbor_graph(neighbors, window, edges="none")
    assert lonely["entry", "window", "entry"].edge_index.shape == (2, 0)


def test_a_batch_without_any_neighbor_is_a_valid_graph():
    graph = neighbor_graph(Neighbors.none(2, 3, 4), torch.ones(2, 3, 4, 3, dtype=torch.int64))
    assert graph.validate(raise_on_error=True)
    assert graph["entry"].num_nodes == 0
    assert graph["token"].num_nodes == 6


def test_shapes_that_do_not_belong_together_are_refused():
    _, neighbors, window = random_inputs()
    with pytest.raises(ValueError, match="does not belong to neighbours"):
        neighbor_graph(neighbors, window[:, :3])
    with pytest.raises(ValueError, match="outside a window of 4"):
        neighbor_graph(neighbors, window, before=4)
    with pytest.raises((ValueError, TypeError), match="visible_from"):  # a type checker comes before us
        neighbor_graph(neighbors, window, visible_from=neighbors.ids[..., :2])
