import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mann import CausalAttention
from mann.mixer.sparse import NativeSparseAttention, attend_blocks
from mann.mixer.window import SlidingWindowAttention
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs
from tests.mann.mixer.naive import prepared, turned

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
SMALL = {"compressed": 4, "stride": 2, "selection": 6, "selected": 4, "window": 5, "block": 4}


def made(**settings):
    torch.manual_seed(0)
    return opened(NativeSparseAttention(12, 2, **SMALL | settings).double())


def naive_branches(layer, x, documents):
    """Query by query and head by head: ``[batch, time, heads, d_head]`` of each branch."""
    batch, time, _ = x.shape
    q, rotated, v = prepared(layer, x, documents)
    _, k, _ = prepared(layer, x, documents, rotated=False)
    run, length, stride, size = runs(documents, batch, time), layer.compressed, layer.stride, layer.selection
    read = [torch.zeros_like(q).clone() for _ in range(3)]
    for b in range(batch):
        for t in range(time):
            past = [s for s in range(t + 1) if run[b, s] == run[b, t]]
            begins = [i for i in range(0, t + 2 - length, stride) if i >= past[0]]
            for h in range(layer.n_heads):
                weights = dict.fromkeys(range(-(-time // size)), 0.0)
                if begins:
                    flat = [(part[b, i : i + length, h].T.flatten()) for i in begins for part in (k, v)]
                    keys = torch.stack([layer.compress_keys @ one for one in flat[::2]])
                    keys = torch.nn.functional.rms_norm(keys, keys.shape[-1:], eps=1e-6)
                    at = torch.tensor(begins) + length - 1
                    keys = turned(layer, keys[:, None], at)[:, 0]
                    values = torch.stack([layer.compress_values @ one for one in flat[1::2]])
                    share = (keys @ q[b, t, h]).softmax(0)
                    read[0][b, t, h] = share @ values
                    for i, weight in zip(begins, share.tolist(), strict=True):
                        for cell in range(i, i + length, stride):
                            weights[cell // size] += weight
                here = t // size
                fixed = [here, *([here - 1] if here > past[0] // size else []), past[0] // size]
                others = [j for j in range(past[0] // size, here + 1) if j not in fixed]
                chosen = list(dict.fromkeys([*fixed, *sorted(others, key=lambda j: -weights[j])]))[
                    : layer.selected
                ]
                for branch, seen in (
                    (1, [s for s in past if s // size in chosen]),
                    (2, [s for s in past if s > t - layer.window]),
                ):
                    share = (rotated[b, seen, h] @ q[b, t, h]).softmax(0)
                    read[branch][b, t, h] = share @ v[b, seen, h]
    return read


@PACKED
@pytest.mark.parametrize(
    "settings", [{}, {"selected": 1}, {"stride": 4, "selection": 4}, {"selected": 2, "window": 60}], ids=str
)
def test_the_layer_equals_its_formula(packed, settings):
    layer, time = made(**settings), 26
    changing, x = torch.zeros(2, time, dtype=torch.long), randn(2, time, 12)
    changing[0, 8:], changing[0, 22:], changing[1, 3:] = 1, 2, 5
    documents = changing if packed else None

    def naive(x, *_):
        gates = (x @ layer.gate.T).sigmoid().unflatten(-1, (3, 2))
        branches = naive_branches(layer, x, documents)
        read = [gates[:, :, i, :, None] * branches[i] for i in range(3)]
        return layer.out((read[0] + read[1] + read[2]).flatten(2))

    def fast(x, *_):
        return layer(x, context(2, time, documents))

    assert_same(fast, naive, x, *layer.parameters(), tolerance=3e-5)


@PACKED
def test_with_all_blocks_selected_that_branch_is_causal_attention(packed):
    layer, documents = made(selected=50), labels(2, 45) if packed else None
    dense, x = CausalAttention(12, 2).double(), randn(2, 45, 12)
    dense.load_state_dict(layer.state_dict(), strict=False)
    where = context(2, 45, documents)
    assert_same(
        lambda x: layer.merge(layer.branches(x, where)[1]), lambda x: dense(x, where), x, tolerance=1e-5
    )


@pytest.mark.parametrize("time", [1, 3])
def test_rows_shorter_than_a_compressed_block_have_two_branches(time):
    layer, x = made(), randn(2, time, 12)
    coarse, fine, near = layer.branches(x, context(2, time))
    assert not coarse.any()
    torch.testing.assert_close(fine, near)


@PACKED
def test_the_window_branch_is_a_sliding_window(packed):
    layer, documents = made(), labels(2, 45) if packed else None
    local, x = SlidingWindowAttention(12, 2, window=5, block=4).double(), randn(2, 45, 12).detach()
    local.load_state_dict(layer.state_dict(), strict=False)
    where = context(2, 45, documents)
    torch.testing.assert_close(layer.merge(layer.branches(x, where)[2]), local(x, where))


def test_a_compressed_block_is_heard_when_it_has_ended():
    layer, x = made(), randn(1, 20, 12)
    coarse = layer.branches(x, context(1, 20))[0]
    assert not coarse[:, :3].any()
    assert coarse[:, 3:].any(-1).all()
    (grad,) = torch.autograd.grad(coarse[:, 9].sum(), x)
    # Blocks begin at 0, 2, 4 and 6; the query itself is the other thing that is heard.
    assert grad[0, :10].any(-1).all()
    (grad,) = torch.autograd.grad(layer.branches(x, context(1, 20))[0][:, 10].sum(), x)
    assert grad[0].any(-1).nonzero().flatten().tolist() == list(range(11))


def test_what_is_selected_is_what_the_compressed_branch_looks_at():
    """A key far back that the query is made for: its block is read, though it is neither first nor near."""
    layer = made(selected=4)
    weights = torch.zeros(2, 60, 29)
    weights[:, 50, 8] = 1.0
    ids, _ = layer._choose(weights, context(1, 60))
    # Positions 16..19 lie in blocks 2 and 3 of six positions each.
    assert ids[0, 50].tolist() == [8, 7, 0, 2]


def test_the_cost_of_a_query_does_not_grow_with_the_row():
    """Every product of the selected branch is with the blocks that were asked for."""
    asked = []
    for time in (60, 240):
        layer, x = made().float(), torch.randn(1, time, 12)
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in layer.heads(x, context(1, time)))
        ids, first = layer._choose(torch.zeros(2, time, (time - 4) // 2 + 1), context(1, time))
        with FlopCounterMode(display=False) as counter:
            attend_blocks(q, k, v, ids, first, 6)
        asked.append(counter.get_total_flops() / time)
    assert asked[0] == asked[1]


def test_bfloat16_autocast_is_near():
    torch.manual_seed(0)
    layer = opened(NativeSparseAttention(64, 2, **SMALL | {"selected": 50}))
    x, where = torch.randn(2, 100, 64), context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, where)
    exact = layer(x, where)
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="selected=0, window=0 must be at least 1"):
        made(selected=0, window=0)
    with pytest.raises(ValueError, match="stride=3 must divide compressed=4 and selection=6"):
        made(stride=3)
