from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gnn import GraphReader
from retrieval.neighbors import Neighbors
from tests.gnn.inputs import opened, random_inputs

EDGES = ["window", "none", "shuffled"]


def build(**settings):
    settings = {"before": 1, "after": 2, "n_heads": 2, "width": 6, **settings}
    torch.manual_seed(0)
    return opened(GraphReader(8, settings.pop("vocab_size", 11), **settings).double())


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("null_sink", [True, False])
@pytest.mark.parametrize("vocab_size", [11, 5000], ids=["more nodes than tokens", "fewer nodes than tokens"])
def test_fused_equals_message_passing(edges, n_layers, null_sink, vocab_size):
    x, neighbors, window = random_inputs(vocab_size=11)
    stamps = torch.randint(0, 4, neighbors.ids.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for fused in (False, True):
        reader = build(
            edges=edges, n_layers=n_layers, null_sink=null_sink, vocab_size=vocab_size, fused=fused
        )
        inputs, scores = x.clone().requires_grad_(), neighbors.scores.clone().requires_grad_()
        update = reader(inputs, dataclasses.replace(neighbors, scores=scores), window, stamps)
        weight = torch.randn(update.shape, generator=torch.Generator().manual_seed(3), dtype=update.dtype)
        (update * weight).sum().backward()
        grads = {name: parameter.grad for name, parameter in reader.named_parameters()}
        results.append({"update": update.detach(), "x": inputs.grad, "scores": scores.grad, **grads})
    naive, fast = results
    assert naive.keys() == fast.keys()
    assert naive["update"].abs().max() > 0.1
    for name in naive:
        torch.testing.assert_close(
            fast[name], naive[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("fused", [True, False])
def test_without_edges_and_sink_it_is_attention_over_a_set(fused):
    x, neighbors, window = random_inputs()
    window = window.clamp(min=1)
    neighbors = dataclasses.replace(neighbors, mask=torch.ones_like(neighbors.mask))
    reader = build(edges="none", null_sink=False, fused=fused)
    attend, (layer,) = reader.attend, reader.rounds
    table = F.rms_norm(reader.token.weight, (6,), eps=1e-6)
    value = (table + F.silu(table) @ layer.weight[0].T)[window[..., 2]].flatten(0, 1).unsqueeze(1)
    state = x.flatten(0, 1)
    query = attend.query(state).view(-1, 2, 1, 6)
    score = torch.log1p(neighbors.scores.double()).flatten(0, 1)
    feature = torch.stack([torch.ones_like(score), score, score - score.amax(-1, keepdim=True)], dim=-1)
    bias = torch.einsum("nhf,nkf->nhk", attend.trust(state).view(-1, 2, 3), feature).unsqueeze(2)
    value = value.expand(-1, 2, -1, -1)
    expected = attend.out(F.scaled_dot_product_attention(query, value, value, attn_mask=bias).flatten(1))
    torch.testing.assert_close(reader(x, neighbors, window).flatten(0, 1), expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("edges", EDGES)
def test_update_depends_on_its_own_position_only(fused, edges):
    x, neighbors, window = random_inputs()
    reader = build(edges=edges, fused=fused).train()
    x.requires_grad_()
    for t in range(x.shape[1]):
        (grad,) = torch.autograd.grad(reader(x, neighbors, window)[:, t].square().sum(), x)
        assert grad[:, t].abs().max() > 0
        assert not grad[:, :t].any()
        assert not grad[:, t + 1 :].any()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("edges", EDGES)
def test_a_prefix_alone_gets_the_same_update(fused, edges):
    x, neighbors, window = random_inputs()
    reader = build(edges=edges, fused=fused, n_layers=2).train()
    whole = reader(x, neighbors, window)
    for t in (1, 3):
        part = Neighbors(neighbors.scores[:, :t], neighbors.ids[:, :t], neighbors.mask[:, :t])
        torch.testing.assert_close(reader(x[:, :t], part, window[:, :t]), whole[:, :t])


@pytest.mark.parametrize("fused", [True, False])
def test_order_of_neighbors_does_not_matter(fused):
    x, neighbors, window = random_inputs()
    reader, order = build(fused=fused), torch.tensor([2, 0, 3, 1])
    mixed = Neighbors(neighbors.scores[..., order], neighbors.ids[..., order], neighbors.mask[..., order])
    torch.testing.assert_close(reader(x, mixed, window[:, :, order]), reader(x, neighbors, window))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("edges", EDGES)
def test_masked_neighbors_change_nothing(fused, edges):
    x, neighbors, window = random_inputs()
    reader, hidden = build(edges=edges, fused=fused, n_layers=2), ~neighbors.mask
    loud = dataclasses.replace(neighbors, scores=neighbors.scores.masked_fill(hidden, 1e6))
    changed = window.masked_fill(hidden.unsqueeze(-1), 9)
    assert torch.equal(reader(x, loud, changed), reader(x, neighbors, window))


@pytest.mark.parametrize("fused", [True, False])
def test_without_neighbors_the_null_entry_is_heard(fused):
    x, _, window = random_inputs()
    nobody = Neighbors.none(2, 6, 4)
    reader = build(fused=fused)
    null = reader.attend.out(reader.attend.null.repeat(2))
    torch.testing.assert_close(reader(x, nobody, window), null.expand_as(x))
    alone = build(fused=fused, null_sink=False)
    x.requires_grad_()
    update = alone(x, nobody, window)
    update.sum().backward()
    assert not update.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [x, *alone.parameters()])


@pytest.mark.parametrize("fused", [True, False])
def test_the_gate_starts_closed_but_can_open(fused):
    x, neighbors, window = random_inputs(dtype=torch.float32)
    reader = GraphReader(8, vocab_size=11, before=1, fused=fused)
    update = reader(x, neighbors, window)
    assert not update.any()
    update.sum().backward()
    assert reader.attend.out.weight.grad.abs().max() > 0


def test_the_answer_and_what_follows_inform_the_token():
    x, neighbors, window = random_inputs(k=1)
    neighbors, window = (
        dataclasses.replace(neighbors, mask=torch.ones_like(neighbors.mask)),
        window.clamp(1, 9),
    )
    heard = {}
    for n_layers in (1, 2):
        reader = build(n_layers=n_layers)
        start = reader(x, neighbors, window)
        for place in range(4):
            changed = window.clone()
            changed[..., place] += 1
            heard[n_layers, place] = not torch.equal(reader(x, neighbors, changed), start)
    assert [heard[1, place] for place in range(4)] == [False, True, True, True]
    assert [heard[2, place] for place in range(4)] == [True, True, True, True]


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_autocast_is_finite_and_near(fused):
    x, neighbors, window = random_inputs(dtype=torch.float32)
    reader = build(n_layers=2, fused=fused).float()
    exact = reader(x, neighbors, window)
    with torch.autocast("cpu", torch.bfloat16):
        update = reader(x, neighbors, window)
    update.float().sum().backward()
    torch.testing.assert_close(update.float(), exact, rtol=0.1, atol=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in reader.parameters())


def test_it_learns_to_say_what_its_neighbors_said():
    _, _, window = random_inputs(batch=8, time=16, vocab_size=30)
    answer = window[:, :, 0, 2].clamp(min=1)
    window[:, :, 0, 2] = answer
    neighbors = Neighbors(
        torch.tensor([9.0, 2.0, 2.0, 1.0]).expand(8, 16, 4),
        torch.zeros_like(window[..., 0]),
        window[..., 2] != 0,
    )
    torch.manual_seed(0)
    reader, head = GraphReader(32, vocab_size=30, before=1), torch.nn.Linear(32, 30)
    optimizer = torch.optim.Adam([*reader.parameters(), *head.parameters()], lr=0.02)
    x = torch.randn(8, 16, 32)
    for _ in range(60):
        loss = F.cross_entropy(head(reader(x, neighbors, window)).flatten(0, 1), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_wrong_shapes_and_settings_are_named():
    x, neighbors, window = random_inputs()
    reader = build()
    with pytest.raises(ValueError, match=r"before=1, after=2"):
        reader(x, neighbors, window[..., :3])
    with pytest.raises(ValueError, match="d_model=8"):
        reader(x[..., :4], neighbors, window)
    with pytest.raises(ValueError, match="neighbours of"):
        reader(x[:, :3], neighbors, window[:, :3])
    with pytest.raises(ValueError, match="after >= 1"):
        GraphReader(8, 11, after=0)
    with pytest.raises(ValueError, match="n_layers >= 1"):
        GraphReader(8, 11, n_layers=0)
    with pytest.raises(
        (ValueError, TypeError), match="edges"
    ):  # under a type checker it does not get to ours
        GraphReader(8, 11, edges="all")
