import pytest
import torch

from mann import CausalAttention
from mann.mixer.window import SlidingWindowAttention
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn
from tests.mann.mixer.naive import attention, prepared, visible


@pytest.mark.parametrize(
    ("time", "window", "block"), [(3, 2, 4), (19, 1, 8), (19, 5, 4), (33, 16, 5), (33, 40, 64)]
)
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_the_layer_equals_its_formula(time, window, block, packed):
    torch.manual_seed(0)
    layer = opened(SlidingWindowAttention(12, 2, window=window, block=block).double())
    documents, x = labels(2, time) if packed else None, randn(2, time, 12)
    mask = visible(documents, 2, time, window)

    def naive(x, *_):
        return layer.out(attention(*prepared(layer, x, documents), mask).flatten(2))

    def fast(x, *_):
        return layer(x, context(2, time, documents))

    assert_same(fast, naive, x, *layer.parameters(), tolerance=2e-5)


@pytest.mark.parametrize("window", [50, 200])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_a_window_as_long_as_the_row_is_causal_attention_bit_for_bit(window, packed):
    torch.manual_seed(0)
    dense = opened(CausalAttention(16, 2, block=16))
    layer = SlidingWindowAttention(16, 2, window=window, block=16)
    layer.load_state_dict(dense.state_dict())
    x, where = torch.randn(2, 50, 16), context(2, 50, labels(2, 50) if packed else None)
    assert torch.equal(layer(x, where), dense(x, where))


def test_it_never_multiplies_with_more_keys_than_a_window_and_a_block():
    layer, seen = SlidingWindowAttention(16, 2, window=20, block=8), []
    multiply = torch.bmm

    def watched(a, b, **kwargs):
        seen.append(b.shape[-1])
        return multiply(a, b, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", watched)
        layer(torch.randn(1, 200, 16), context(1, 200))
    assert max(seen) == 20 + 8 - 1


def test_what_has_left_the_window_has_no_gradient():
    torch.manual_seed(0)
    layer, x = opened(SlidingWindowAttention(16, 2, window=7, block=4)), randn(1, 40, 16, dtype=torch.float32)
    (grad,) = torch.autograd.grad(layer(x, context(1, 40))[0, 30].sum(), x)
    heard = grad[0].any(-1).nonzero().flatten().tolist()
    # One more than the window: the first key in it is mixed with the key before.
    assert heard == list(range(23, 31))


def test_bfloat16_autocast_is_near():
    torch.manual_seed(0)
    layer = opened(SlidingWindowAttention(64, 2, window=30))
    x, where = torch.randn(2, 100, 64), context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, where)
    exact = layer(x, where)
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_a_window_without_positions_is_refused():
    with pytest.raises(ValueError, match="window >= 1"):
        SlidingWindowAttention(16, 2, window=0)


@pytest.mark.parametrize("mixer", [CausalAttention, SlidingWindowAttention])
def test_blocks_without_queries_are_refused(mixer):
    with pytest.raises(ValueError, match="at least 1 query"):
        mixer(16, 2, block=-1)(torch.randn(1, 5, 16), context(1, 5))
