import pytest
import torch
import torch.nn.functional as F

from mann import CausalAttention
from mann.mixer.latent import LatentAttention
from mann.norm import EPSILON
from mann.rotary import rotary_tables
from tests.contracts import opened
from tests.mann.inputs import assert_same, context, labels, randn, runs

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])


def made(d_model=12, n_heads=2, **settings):
    torch.manual_seed(0)
    return opened(LatentAttention(d_model, n_heads, **settings).double())


def decoded(layer, x, documents):
    """Position by position, of earlier ones nothing but what a decoder keeps: ``d_latent + d_rotary`` numbers."""
    batch, time, width = x.shape
    run, heads, size, turned = runs(documents, batch, time), layer.n_heads, layer.d_head, layer.d_rotary // 2
    tables = rotary_tables(time, layer.d_rotary, layer.base, x.device, x.dtype)

    def split(vector):
        """What is rotated and what is not."""
        first, second = vector.chunk(2, -1)
        return torch.cat([first[..., :turned], second[..., :turned]], -1), torch.cat(
            [first[..., turned:], second[..., turned:]], -1
        )

    def rotated(vector, t):
        return vector * tables[0][t] + vector.roll(turned, -1) * tables[1][t]

    rows = []
    for b in range(batch):
        kept = []
        for t in range(time):
            latent = F.rms_norm(layer.down.weight @ x[b, t], (layer.d_latent,), eps=EPSILON)
            kept.append(torch.cat([latent, layer.rotary.weight @ x[b, t]]))
            asked = x[b, t]
            if layer.query_down is not None:
                down = layer.query_down.weight
                asked = F.rms_norm(down @ asked, (len(down),), eps=EPSILON)
            read = []
            for h in range(heads):
                mine = slice(h * size, (h + 1) * size)
                up_k, up_v = layer.up.weight[:width][mine], layer.up.weight[width:][mine]
                q = (layer.query.weight @ asked).view(heads, -1)[h]
                q = layer.scale[h] * F.rms_norm(q, q.shape, eps=EPSILON)
                q_turned, q_still = split(q)
                scores, values = [], []
                for s in range(t + 1):
                    if run[b, s] != run[b, t]:
                        continue
                    memory = kept[s]
                    if s and run[b, s - 1] == run[b, s]:
                        share = layer.shift[h].sigmoid()
                        memory = (1 - share) * memory + share * kept[s - 1]
                    k = torch.cat([memory[layer.d_latent :], up_k @ memory[: layer.d_latent]])
                    k = F.rms_norm(k, k.shape, eps=EPSILON)
                    k_turned, k_still = k[: layer.d_rotary], k[layer.d_rotary :]
                    scores.append(rotated(q_turned, t) @ rotated(k_turned, s) + q_still @ k_still)
                    values.append(up_v @ kept[s][: layer.d_latent])
                read.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            rows.append(torch.cat(read))
    return layer.out(torch.stack(rows).view_as(x))


@PACKED
@pytest.mark.parametrize(
    "settings", [{}, {"d_latent": 3, "d_rotary": 4, "d_query": 5}, {"d_rotary": 6, "block": 3}], ids=str
)
def test_it_is_what_a_decoder_makes_of_its_cache(packed, settings):
    layer, x = made(**settings), randn(2, 9, 12)
    documents = labels(2, 9) if packed else None

    def fast(x, *_):
        return layer(x, context(2, 9, documents))

    def naive(x, *_):
        return decoded(layer, x, documents)

    assert_same(fast, naive, x, *layer.parameters(), tolerance=1e-5)


@PACKED
def test_later_latents_are_not_heard(packed):
    layer, x = made(), randn(2, 30, 12)
    documents = torch.zeros(2, 30, dtype=torch.long)
    documents[:, 10:] = int(packed)
    (grad,) = torch.autograd.grad(layer(x, context(2, 30, documents))[:, 20].sum(), x)
    heard = grad[0].any(-1).nonzero().flatten().tolist()
    assert heard == list(range(10 if packed else 0, 21))


def test_the_cache_is_as_small_as_it_says():
    layer = LatentAttention(256, 8)
    kept = layer.latents(torch.randn(1, 5, 256))
    assert sum(part[0, 0].numel() * part.element_size() for part in kept) == layer.cache_bytes == 576
    assert layer.bfloat16().cache_bytes == 288
    dense = CausalAttention(256, 8)
    assert dense.qkv.weight[256:].shape[0] * 4 == 2048


def test_bfloat16_autocast_is_near():
    torch.manual_seed(0)
    layer = opened(LatentAttention(64, 2))
    x, where = torch.randn(2, 100, 64), context(2, 100, labels(2, 100))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, where)
    exact = layer(x, where)
    assert (y.float() - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_latent": 0}, "at least 1"),
        ({"d_query": 0}, "at least 1"),
        ({"d_rotary": 3}, "even width"),
        ({"n_heads": 5}, "choose n_heads among"),
    ],
)
def test_errors_name_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
