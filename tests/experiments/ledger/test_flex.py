"""FlexAttention is billed by the pairs its mask lets through and by what its score function does to each."""

import pytest
import torch
import torch.nn.functional as F
from torch._higher_order_ops.flex_attention import flex_attention as operator
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from experiments.ledger import Ledger

B, H, T, D = 2, 4, 16, 8
CAUSAL = B * H * T * (T + 1) // 2


def causal(b, h, q, k):
    return q >= k


def parts(heads=H):
    return torch.rand(B, H, T, D), torch.rand(B, heads, T, D), torch.rand(B, heads, T, D)


def block_mask(mask_mod):
    return create_block_mask(mask_mod, None, None, T, T, device="cpu", BLOCK_SIZE=16)


def bill(function, *args, **kwargs):
    with Ledger() as ledger:
        function(*args, **kwargs)
    return ledger


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_live_pairs_as_the_fused_kernel_counts_them(heads):
    given = parts(heads)
    flex = bill(flex_attention, *given, block_mask=block_mask(causal), enable_gqa=True)
    with Ledger() as sdpa:
        F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
    assert flex.flops == sdpa.flops == CAUSAL * (4 * D + 6)
    assert flex.matmul_flops == sdpa.matmul_flops == CAUSAL * 4 * D


def test_a_window_inside_a_block_is_counted_pair_by_pair():
    window = block_mask(lambda b, h, q, k: (q >= k) & (q - k < 4))
    alive = B * H * sum(min(t + 1, 4) for t in range(T))
    assert bill(flex_attention, *parts(), block_mask=window).matmul_flops == alive * 4 * D


def test_every_pair_lives_without_a_mask():
    assert bill(flex_attention, *parts()).matmul_flops == B * H * T * T * 4 * D


def test_the_score_function_is_paid_for_each_pair():
    slopes = torch.rand(H)

    def alibi(score, b, h, q, k):
        return score + slopes[h] * (q - k)

    ledger = bill(flex_attention, *parts(), score_mod=alibi, block_mask=block_mask(causal))
    assert ledger.flops == CAUSAL * (4 * D + 6 + 3)


def test_compiled_function_has_the_bill_of_the_plain_one():
    compiled = torch.compile(flex_attention, fullgraph=True)
    given, mask = parts(), block_mask(causal)
    assert (
        bill(compiled, *given, block_mask=mask).flops == bill(flex_attention, *given, block_mask=mask).flops
    )


def test_backward_of_the_operator():
    # flex_attention itself refuses gradients on CPU, the operator under it does not.
    query, key, value = (part.requires_grad_() for part in parts())
    mask = block_mask(causal).as_tuple()
    with Ledger() as ledger:
        out, _, _ = operator(query, key, value, lambda score, b, h, q, k: score * 2.0, mask, D**-0.5, {})
        out.backward(torch.ones_like(out))
    costs = ledger.costs("operator")
    assert costs["flex_attention"].flops == CAUSAL * (4 * D + 6 + 1)
    assert costs["flex_attention_backward"].flops == CAUSAL * (8 * D + 5 + 1)
