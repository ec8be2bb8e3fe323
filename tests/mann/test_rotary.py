import pytest
import torch
import torch.nn.functional as F

from mann.norm import EPSILON
from mann.rotary import queries_keys, rotary_tables
from tests.mann.inputs import assert_same, context, labels, randn


def naive_queries_keys(q, k, share, scale, base, inside):
    """As the formula says, position by position."""
    time, d_head = k.shape[1], k.shape[-1]
    shifted = []
    for t in range(time):
        earlier = k[:, max(t - 1, 0)]
        if inside is not None:
            earlier = torch.where(inside[:, t, None, None], earlier, k[:, t])
        shifted.append((1 - share) * k[:, t] + share * earlier)
    q = scale * F.rms_norm(q, (d_head,), eps=EPSILON)
    k = F.rms_norm(torch.stack(shifted, 1), (d_head,), eps=EPSILON)
    angle = torch.arange(time, dtype=torch.float64)[:, None] * base ** (
        -torch.arange(0, d_head, 2, dtype=torch.float64) / d_head
    )
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(x):
        half = d_head // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    return rotate(q), rotate(k)


def tables(time, d_head, base=100.0):
    cosine, sine = rotary_tables(time, d_head, base, torch.device("cpu"), torch.float64)
    return cosine[:, None, None], sine[:, None, None]


@pytest.mark.parametrize(("batch", "time", "heads", "d_head"), [(1, 1, 1, 2), (2, 7, 3, 4), (3, 13, 2, 10)])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_it_equals_the_formula(batch, time, heads, d_head, packed):
    q, k = (randn(batch, time, heads, d_head, seed=seed) for seed in (0, 1))
    share, scale = torch.sigmoid(randn(heads, 1, seed=2)).detach().requires_grad_(), randn(heads, 1, seed=3)
    inside = context(batch, time, labels(batch, time)).same_document(1) if packed else None
    assert_same(
        lambda q, k, share, scale: queries_keys(q, k, share, scale, tables(time, d_head), inside),
        lambda q, k, share, scale: naive_queries_keys(q, k, share, scale, 100.0, inside),
        q,
        k,
        share,
        scale,
        tolerance=1e-5,  # the tables are computed in float32
    )


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_its_gradient_is_that_of_its_output(packed):
    q, k = (randn(2, 5, 2, 4, seed=seed) for seed in (0, 1))
    share, scale = torch.sigmoid(randn(2, 1, seed=2)).detach().requires_grad_(), randn(2, 1, seed=3)
    inside = context(2, 5, labels(2, 5)).same_document(1) if packed else None
    assert torch.autograd.gradcheck(
        lambda *leaves: queries_keys(*leaves, tables(5, 4), inside), (q, k, share, scale)
    )


def test_products_depend_on_distance_alone():
    one, other = randn(1, 1, 1, 8, seed=1), randn(1, 1, 1, 8, seed=2)
    share, scale = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    q, k = queries_keys(
        one.expand(1, 9, 1, 8).clone(), other.expand(1, 9, 1, 8).clone(), share, scale, tables(9, 8), None
    )
    products = q[0, :, 0] @ k[0, :, 0].T
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert products.std() > 0.1


def test_rotation_keeps_lengths():
    cosine, sine = rotary_tables(50, 6, 10_000.0, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones(50, 6))
    assert torch.equal(cosine[0], torch.ones(6))


def test_second_derivatives_are_refused():
    q, k = randn(1, 3, 2, 4), randn(1, 3, 2, 4, seed=1)
    share, scale = randn(2, 1, seed=2), randn(2, 1, seed=3)
    both = queries_keys(q, k, share, scale, tables(3, 4), None)
    (first,) = torch.autograd.grad(sum(part.square().sum() for part in both), k, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
