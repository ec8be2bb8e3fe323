from __future__ import annotations

import numpy as np
import pytest
import torch

from gnn import EntryGraph, HeteroReader, neighbor_graph
from gnn.entry_graph import KINDS
from retrieval import ContextSource, Neighbors, Passages, SnapshotError, SuffixSource
from tests.gnn.inputs import random_inputs
from tests.gnn.test_hetero_reader import assert_same, build, results

SIZES, DOCUMENTS = (9, 1, 6, 12, 2, 8), (0, 1, 2, 0, 3, 2)


def passages(vocab_size: int = 5) -> Passages:
    """A few passages, some of one document, over few tokens, so that much repeats; a token 0 here and there."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, sum(SIZES)).astype(np.uint16)
    return Passages(tokens, np.cumsum((0, *SIZES)), np.array(DOCUMENTS), vocab_size=11)


SOURCE = SuffixSource(passages(), max_order=3)
GRAPH = EntryGraph.build(SOURCE, places=2, candidates=8, chunk=7)


def edges_of(kind: str, graph: EntryGraph = GRAPH) -> torch.Tensor:
    return graph.edges.split(list(graph.widths.values()), 1)[graph.kinds.index(kind)]


def test_each_kind_leads_where_it_says():
    text, entries = GRAPH.passages, GRAPH.passages.entries()
    assert GRAPH.widths == {"succession": 1, "document": 2, "nearest": 2, "answer": 2}
    assert (np.delete(GRAPH.edges.numpy(), entries, 0) == -1).all()
    where = {int(p): int(np.searchsorted(text.offsets, p, side="right")) for p in range(len(text))}
    for p in entries:
        (succession,) = edges_of("succession")[p].tolist()
        assert succession == (p + 1 if p + 1 in entries and where[p] == where[p + 1] else -1)
        others = [e for e in entries if text.labels[e] == text.labels[p] and e != p]
        found = [e for e in edges_of("document")[p].tolist() if e >= 0]
        assert len(set(found)) == len(found) == min(2, len(others))
        assert set(found) <= set(others)
        start = int(text.offsets[where[p] - 1])
        asked = SOURCE.search(
            torch.from_numpy(text.tokens[start : p + 1].astype(np.int64))[None],
            8,
            exclude=torch.full((1, p + 1 - start), int(text.labels[p])),
        )
        near = asked.ids[0, -1][asked.mask[0, -1]].tolist()
        assert [e for e in edges_of("nearest")[p].tolist() if e >= 0] == near[:2]
        alike = [e for e in near if text.tokens[e + 1] == text.tokens[p + 1]]
        assert [e for e in edges_of("answer")[p].tolist() if e >= 0] == alike[:2]


def test_it_says_what_it_took_and_how_far_it_is():
    done: list[int] = []
    graph = EntryGraph.build(SOURCE, ("nearest",), places=3, chunk=20, progress=done.append)
    assert done == [20, 38]
    assert graph.work["bytes"] > 0
    assert not EntryGraph.build(SOURCE, ("succession",)).work
    assert torch.equal(graph.edges, EntryGraph.build(SOURCE, ("nearest",), places=3, chunk=3).edges)


def test_a_searched_store_of_vectors_does_as_well():
    graph = EntryGraph.build(ContextSource(passages()), ("nearest", "answer"), places=1)
    labels, found = graph.passages.labels, edges_of("nearest", graph)[:, 0].numpy()
    assert (labels[found[found >= 0]] != labels[found >= 0]).all()
    assert (found[graph.passages.entries()] >= 0).all()


def test_a_saved_graph_comes_back_and_a_foreign_one_does_not(tmp_path):
    GRAPH.save(tmp_path / "graph")
    found = EntryGraph.open(tmp_path / "graph", passages())
    assert torch.equal(found.edges, GRAPH.edges)
    assert (found.widths, found.work) == (GRAPH.widths, GRAPH.work)
    with pytest.raises(SnapshotError, match="for other passages"):
        EntryGraph.open(tmp_path / "graph", passages(vocab_size=4))
    file = tmp_path / "graph" / "edges.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(SnapshotError, match="damaged"):
        EntryGraph.open(tmp_path / "graph", passages())
    with pytest.raises(SnapshotError, match="there is no entry graph"):
        EntryGraph.open(tmp_path / "none", passages())


@pytest.mark.parametrize(
    "settings", [{"kinds": ()}, {"kinds": ("cousin",)}, {"kinds": ("answer",) * 2}, {"places": 0}]
)
def test_what_makes_no_graph_is_refused(settings):
    with pytest.raises(ValueError, match="use each of succession, document, nearest, answer once at most"):
        EntryGraph.build(SOURCE, **settings)
    with pytest.raises(ValueError, match="one row a token"):
        EntryGraph(passages(), np.zeros((3, 1), np.int32), {"nearest": 1})


def test_an_excluded_document_is_not_heard_of():
    entries = torch.from_numpy(GRAPH.passages.entries())
    found, there = GRAPH.joined(entries, torch.full_like(entries, 2))
    everything, all_there = GRAPH.joined(entries)
    own = GRAPH.labels[everything] == 2
    assert (all_there & own).any()
    assert torch.equal(there, all_there & ~own)
    assert not found[~there].any()


def retrieved(time: int = 6):
    """Neighbours that are entries of the small store; those that are masked are entry 0, with a window of noise."""
    x, neighbors, noise = random_inputs(time=time, w=4)
    entries = torch.from_numpy(GRAPH.passages.entries())
    chosen = torch.randint(0, len(entries), neighbors.ids.shape, generator=torch.Generator().manual_seed(4))
    ids = entries[chosen] * neighbors.mask
    window = GRAPH.passages.window(ids, 1, 2)
    neighbors = Neighbors(neighbors.scores, ids, neighbors.mask)
    return x, neighbors, torch.where(neighbors.mask[..., None], window, noise)


EXCLUDE = torch.tensor([[0] * 6, [2, 2, 2, -1, -1, -1]])


def test_the_graph_holds_what_entries_are_joined_to():
    _, neighbors, window = retrieved()
    graph = neighbor_graph(neighbors, window, before=1, joined=GRAPH, hops=2, exclude=EXCLUDE)
    assert graph.validate(raise_on_error=True)
    plain = neighbor_graph(neighbors, window, before=1)
    assert torch.equal(
        graph["entry", "retrieved", "token"].edge_index, plain["entry", "retrieved", "token"].edge_index
    )
    entry = graph["entry"]
    assert torch.equal(entry.token[entry.hop == 0], plain["entry"].token)
    sources = []
    for kind in KINDS:
        source, target = graph["entry", kind, "entry"].edge_index
        assert len(source)
        assert (entry.offset[source] == 0).all()
        assert (entry.offset[target] == 0).all()
        assert torch.equal(entry.hop[source], entry.hop[target] + 1)
        sources.append(source)
    # Every one of these nodes is heard by one other: no window is shared.
    further = ((entry.hop > 0) & (entry.offset == 0)).nonzero().flatten()
    assert torch.equal(torch.cat(sources).sort().values, further)
    with pytest.raises(ValueError, match="use visible_from or joined"):
        neighbor_graph(
            neighbors, window, before=1, joined=GRAPH, visible_from=torch.zeros_like(neighbors.ids)
        )


@pytest.mark.parametrize("score", ["hgt", "gatv2"])
@pytest.mark.parametrize("softmax", ["joint", "per type"])
@pytest.mark.parametrize("exclude", [None, EXCLUDE], ids=["everything", "not their own document"])
@pytest.mark.parametrize("n_layers", [2, 3])
def test_hearing_further_entries_once_each_equals_message_passing(score, softmax, exclude, n_layers):
    settings = {"score": score, "softmax": softmax, "n_layers": n_layers, "joined": GRAPH}
    rest = (None, None, exclude)
    naive = results(build(amortised=False, **settings), *retrieved(), *rest)
    assert all(grad is not None for grad in naive.values())
    assert_same(results(build(**settings), *retrieved(), *rest), naive)


@pytest.mark.parametrize("joined", [None, GRAPH], ids=["windows", "edges"])
@pytest.mark.parametrize("exclude", [None, EXCLUDE])
def test_nodes_may_begin_with_states_of_a_trained_model(joined, exclude):
    features = torch.randn(len(GRAPH.passages), 3, generator=torch.Generator().manual_seed(6))
    settings = {"n_layers": 3, "joined": joined, "features": features}
    naive = results(build(amortised=False, **settings), *retrieved(), None, None, exclude)
    reader = build(**settings)
    assert_same(results(reader, *retrieved(), None, None, exclude), naive)
    assert "token.weight" not in reader.state_dict()
    assert reader.begin.weight.shape == (6, 3)
    reader.features = features.roll(1, 0)
    assert not torch.allclose(reader(*retrieved()), build(**settings)(*retrieved()))


def test_entries_further_away_are_heard_and_excluded_ones_are_not():
    x, neighbors, window = retrieved()
    without, heard = build(n_layers=3), build(n_layers=3, joined=GRAPH)
    heard.load_state_dict(
        without.state_dict() | {n: p for n, p in heard.state_dict().items() if p.shape[:1] == (6,)}
    )
    assert (heard(x, neighbors, window) - without(x, neighbors, window)).abs().amax(-1).gt(1e-6).any()
    # With every word of document 0 another one, what may not hear of it is the same.
    text = passages()
    changed = text.tokens.copy()
    changed[text.labels == 0] = 9
    other = EntryGraph(
        Passages(changed, text.offsets, text.documents, vocab_size=11), GRAPH.edges.numpy(), GRAPH.widths
    )
    of_others = Neighbors(
        neighbors.scores, neighbors.ids, neighbors.mask & (GRAPH.labels[neighbors.ids] != 0)
    )
    exclude = torch.zeros(2, 6, dtype=torch.int64)
    found = heard(x, of_others, window, None, None, exclude)
    heard.joined = other
    assert torch.equal(found, heard(x, of_others, window, None, None, exclude))
    assert not torch.equal(found, heard(x, of_others, window))


def test_a_remembered_store_has_heard_its_own_edges():
    x, neighbors, window = retrieved()
    reader = build(n_layers=3, joined=GRAPH)
    found = reader(x, neighbors, window)
    reader.remember(GRAPH.passages.window(torch.arange(len(GRAPH.passages)), 1, 2), chunk=9)
    torch.testing.assert_close(reader(x, neighbors, window), found, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="can exclude none"):
        reader(x, neighbors, window, None, None, EXCLUDE)
    with pytest.raises(ValueError, match="use visible_from or joined"):
        reader(x, neighbors, window, torch.zeros_like(neighbors.ids))


def test_a_reader_of_joined_entries_is_built_like_any():
    reader = HeteroReader(8, 11, joined=GRAPH)
    assert [layer.message.shape[0] for layer in reader.layers] == [6, 2]
