import pytest
import torch

from mann import CausalAttention, State
from mann.mixer.cache import CachedAttention
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn
from tests.mann.mixer.naive import attention, prepared, visible
from tests.mann.segments import LENGTHS, TIME, assert_goes_on, assert_segments, changing, in_segments


def made(**settings):
    torch.manual_seed(0)
    layer = opened(CachedAttention(12, 2, block=4, **settings).double())
    layer.state_key = "mixer"
    return layer, randn(3, TIME, 12)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize("settings", [{"cache": TIME}, {"cache": 9, "window": 10}], ids=str)
def test_segments_are_one_row(settings, documents):
    layer, x = made(**settings)
    assert_segments(layer, x, documents, tolerance=1e-5)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_segments_with_a_long_cache_are_causal_attention(documents):
    layer, x = made(cache=TIME)
    dense = CausalAttention(12, 2).double()
    dense.load_state_dict(layer.state_dict())
    expected = dense(x, context(3, TIME, documents))
    torch.testing.assert_close(in_segments(layer, x, documents, State()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
@pytest.mark.parametrize("cache", [1, 8, 15])
def test_a_short_cache_is_what_it_says(cache, documents):
    layer, x = made(cache=cache)
    begin = torch.repeat_interleave(torch.tensor([0, *LENGTHS[:-1]]).cumsum(0), torch.tensor(LENGTHS))
    mask = visible(documents, 3, TIME) & (torch.arange(TIME) >= begin[:, None] - cache)

    def naive(x, *_):
        return layer.out(attention(*prepared(layer, x, documents), mask).flatten(2))

    def fast(x, *_):
        return in_segments(layer, x, documents, State())

    assert_same(fast, naive, x, *layer.parameters(), tolerance=2e-5)


def test_without_a_state_it_is_causal_attention():
    torch.manual_seed(0)
    dense = opened(CausalAttention(16, 2))
    layer = CachedAttention(16, 2)
    layer.load_state_dict(dense.state_dict())
    x, where = torch.randn(2, 70, 16), context(2, 70, labels(2, 70))
    assert torch.equal(layer(x, where), dense(x, where))


@pytest.mark.parametrize("documents", [None, changing()], ids=["one document", "documents"])
def test_a_state_goes_on_when_saved_and_when_detached(documents, tmp_path):
    layer, x = made(cache=10)
    assert_goes_on(layer, x, documents, tmp_path)


def test_segments_run_under_autocast():
    layer, x = made(cache=10)
    layer, x = layer.float(), x.detach().float().requires_grad_()
    exact = in_segments(layer, x, changing(), State())
    with torch.autocast("cpu", torch.bfloat16):
        near = in_segments(layer, x, changing(), State())
    assert (near.float() - exact).norm() < 0.05 * exact.norm()
    (grad,) = torch.autograd.grad(near.float().sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"cache": 0}, {"window": 0}], ids=str)
def test_sizes_below_one_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        CachedAttention(16, 2, **settings)
