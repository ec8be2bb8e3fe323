import pytest
import torch

from mann import CausalAttention, Context, State
from mann.mixer.knn import KNNAttention, _best
from mann.mixer.window import SlidingWindowAttention
from mann.topk import top_ids
from retrieval import RollingMemory
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn
from tests.mann.mixer.naive import prepared, visible
from tests.mann.segments import TIME, assert_goes_on, changing, in_segments

COMBINE = pytest.mark.parametrize("combine", ["gate", "softmax"])
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])


def made(seed=0, **settings):
    torch.manual_seed(seed)
    return opened(KNNAttention(12, 2, **settings).double())


def naive_layer(layer, x, documents):
    """Query by query and head by head."""
    (near_q, near_k, v), (q, k, _) = (prepared(layer, x, documents, rotated) for rotated in (True, False))
    if layer.rotate_far:
        q, k = near_q, near_k
    time = x.shape[1]
    every, near = visible(documents, len(x), time), visible(documents, len(x), time, layer.window)
    rows = []
    for b in range(len(x)):
        for t in range(time):
            read = []
            for h in range(layer.n_heads):
                here, left = near[b, t].nonzero()[:, 0], (every[b, t] & ~near[b, t]).nonzero()[:, 0]
                scores, far = near_k[b, here, h] @ near_q[b, t, h], k[b, left, h] @ q[b, t, h]
                best = far.topk(min(layer.k, len(left))).indices
                far, left = far[best], left[best]
                if layer.gate is None:
                    shares, places = torch.cat([scores, far]).softmax(0), torch.cat([here, left])
                    read.append(shares @ v[b, places, h])
                else:
                    g = layer.gate[h].sigmoid() * (len(left) > 0)
                    read.append(
                        (1 - g) * scores.softmax(0) @ v[b, here, h] + g * far.softmax(0) @ v[b, left, h]
                    )
            rows.append(torch.cat(read))
    return layer.out(torch.stack(rows).view_as(x))


@COMBINE
@PACKED
@pytest.mark.parametrize(
    "settings", [{"k": 3, "window": 4}, {"k": 50, "window": 1}, {"k": 2, "window": 6, "rotated": True}]
)
def test_the_layer_equals_its_formula(combine, packed, settings):
    layer, x = made(combine=combine, block=5, **settings), randn(2, 21, 12)
    documents = labels(2, 21).sort(1).values if packed else None
    assert_same(
        lambda x, *_: layer(x, context(2, 21, documents)),
        lambda x, *_: naive_layer(layer, x, documents),
        x,
        *layer.parameters(),
        tolerance=2e-5,
    )


@PACKED
@pytest.mark.parametrize("window", [1, 10, 64])
def test_with_all_neighbours_in_one_softmax_it_is_causal_attention(packed, window):
    layer = made(k=70, window=window, combine="softmax", rotated=True)
    dense = CausalAttention(12, 2).double()
    dense.load_state_dict(layer.state_dict())
    documents = labels(2, 70).sort(1).values if packed else None
    where = context(2, 70, documents)
    leaves = randn(2, 70, 12)
    assert_same(lambda x: layer(x, where), lambda x: dense(x, where), leaves, tolerance=1e-5)


@COMBINE
@PACKED
def test_a_window_as_long_as_the_row_is_a_sliding_window(combine, packed):
    layer = made(window=40, combine=combine).float()
    local = SlidingWindowAttention(12, 2, window=40)
    local.load_state_dict(layer.state_dict(), strict=False)
    x, where = torch.randn(2, 40, 12), context(2, 40, labels(2, 40) if packed else None)
    torch.testing.assert_close(layer(x, where), local(x, where))


@COMBINE
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize(
    "settings", [{"k": 3, "window": 5}, {"k": 64, "window": 1}, {"k": 4, "window": 20}], ids=str
)
def test_segments_are_one_row(combine, documents, settings):
    """What the memory says is what the row said: each position is heard once, and none of another document."""
    layer, x = made(combine=combine, **settings), randn(3, TIME, 12)
    whole, parts = layer(x, context(3, TIME, documents)), in_segments(layer, x, documents, State())
    # The memory keeps single precision.
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_what_was_stored_has_no_gradient_and_what_is_carried_has():
    layer, x = made(k=64, window=3), randn(1, TIME, 12)
    parts = in_segments(layer, x, None, State(), lengths=(10, 10))
    (grad,) = torch.autograd.grad(parts[:, 10:].square().sum(), x)
    heard = grad[0, :10].any(-1).nonzero().flatten().tolist()
    # The two before the segment, and one more that their keys are mixed with; both are queries of nothing here.
    assert heard == [7, 8, 9]


def test_a_full_memory_forgets_the_oldest():
    layer, x = made(k=64, window=2, capacity=8), randn(1, 30, 12)
    roomy = made(k=64, window=2, capacity=64)
    found = []
    for one in (layer, roomy):
        state = State()
        in_segments(one, x, None, state, lengths=(10, 10))
        found.append(state.memory(one, lambda: RollingMemory(1, 2, 1, 6, 6)))
    assert [len(memory) for memory in found] == [2 * 8, 2 * 19]
    last = found[1].gather(torch.arange(11, 19).expand(1, 2, 1, -1))
    kept = found[0].gather(torch.arange(11, 19).expand(1, 2, 1, -1))
    assert kept.mask.all()
    assert torch.equal(kept.keys, last.keys)


def test_the_gradient_through_the_memory_is_that_of_attention_over_copies():
    """Queries have it; compared with the row, where what was found is held fixed."""
    layer, x = made(k=5, window=2), randn(1, 20, 12)
    fixed = x.detach()[:, :14]

    def streamed(late, *_):
        with torch.no_grad():
            state = State()
            in_segments(layer, fixed, None, state, lengths=(14,))
        return in_segments(layer, late, None, state, lengths=(6,))

    def whole(late, *_):
        return naive_layer(layer, torch.cat([fixed, late], 1), None)[:, 14:]

    late = x.detach()[:, 14:].clone().requires_grad_()
    assert_same(streamed, whole, late, layer.gate, layer.out.weight, tolerance=1e-4)


@COMBINE
@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_a_state_goes_on_when_saved_and_when_detached(documents, combine, tmp_path):
    layer = made(k=3, window=4, combine=combine)
    assert_goes_on(layer, randn(3, TIME, 12), documents, tmp_path)


def test_few_queries_read_as_many_do():
    layer, x = made(k=3, window=4, capacity=64), randn(2, 40, 12)
    whole = layer(x, context(2, 40))
    parts = in_segments(layer, x, None, State(), lengths=(36, 1, 1, 1, 1))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@COMBINE
def test_segments_run_under_autocast(combine):
    layer, x = made(k=64, window=5, combine=combine).float(), randn(3, TIME, 12, dtype=torch.float32)
    exact = in_segments(layer, x, changing(), State())
    with torch.autocast("cpu", torch.bfloat16):
        near = in_segments(layer, x, changing(), State())
    assert (near.float() - exact).norm() < 0.05 * exact.norm()
    (grad,) = torch.autograd.grad(near.float().sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("n", "k", "parts"), [(100, 7, 1), (512, 40, 2), (700, 32, 4), (701, 32, 4), (600, 300, 3)]
)
def test_the_best_of_all_parts_are_the_best(n, k, parts):
    scores = torch.randint(0, 900, (3, n), generator=torch.Generator().manual_seed(n)).float()
    assert torch.equal(_best(scores, k, parts), top_ids(scores, k))


def test_a_long_row_finds_what_a_short_search_finds():
    """Beyond 256 candidates they are compared in parts."""
    layer, x = made(k=2, window=3).float(), torch.randn(1, 700, 12)
    fast = layer(x, context(1, 700))[0, -1]
    q, k, _ = prepared(layer, x, None, rotated=False)
    far = torch.einsum("hd,shd->sh", q[0, -1], k[0, :-3]).topk(2, dim=0).indices
    near_q, near_k, v = prepared(layer, x, None)
    local = (near_k[0, -3:] * near_q[0, -1]).sum(-1).softmax(0)
    scores = torch.stack([(k[0, far[:, h], h] @ q[0, -1, h]).softmax(0) for h in range(2)], 1)
    read = torch.stack([scores[:, h] @ v[0, far[:, h], h] for h in range(2)])
    g = layer.gate.sigmoid()[:, None]
    y = (1 - g) * torch.einsum("sh,shd->hd", local, v[0, -3:]) + g * read
    torch.testing.assert_close(fast, layer.out(y.flatten()), rtol=1e-4, atol=1e-4)


def test_errors_name_the_remedy():
    for name in ("k", "window", "capacity"):
        with pytest.raises(ValueError, match="at least 1"):
            made(**{name: 0})
    with pytest.raises(ValueError, match="'gate' or 'softmax'"):
        KNNAttention(16, 2, combine="sum")
    with pytest.raises(ValueError, match="knows no positions"):
        made(rotated=True)(torch.randn(1, 4, 12), Context(torch.zeros(1, 4, dtype=torch.long), state=State()))
