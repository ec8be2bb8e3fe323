"""Numbers of few bits: quantising is fake quantising without the way back, a product stays a product."""

import warnings

import pytest
import torch
from torch import nn

from experiments.ledger import Ledger

N, K, OUT = 3, 8, 6
PRODUCT = 2 * N * K * OUT
X = torch.rand(N, K)


def bill(call):
    with Ledger() as ledger:
        call()
    return ledger


def test_there_and_back_is_fake_quantising():
    there = bill(lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))
    quantised = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    back = bill(quantised.dequantize)
    faked = bill(lambda: torch.fake_quantize_per_tensor_affine(X, 0.1, 0, -128, 127))
    assert (there.flops, back.flops) == (4 * N * K, 2 * N * K)
    assert there.flops + back.flops == faked.flops
    # Floats in, bytes out; and the other way around.
    assert (there.bytes_read, there.bytes_written) == (4 * N * K, N * K)
    assert (back.bytes_read, back.bytes_written) == (N * K, 4 * N * K)


def test_a_scale_for_each_channel_and_one_found_on_the_way():
    scales, zeros = torch.ones(N), torch.zeros(N, dtype=torch.long)
    assert bill(lambda: torch.quantize_per_channel(X, scales, zeros, 0, torch.qint8)).flops == 4 * N * K
    assert bill(lambda: torch.quantize_per_tensor_dynamic(X, torch.qint8, False)).flops == 6 * N * K
    assert (
        bill(lambda: torch.quantize_per_tensor([X, X], scales[:2], zeros[:2], torch.qint8)).flops == 8 * N * K
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "size", "there", "back"), [(torch.qint8, 1, 6, 2), (torch.float16, 2, 0, 0)]
)
def test_linear_layer_quantised_as_it_runs(bias, dtype, size, there, back):
    with warnings.catch_warnings(action="ignore"):
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(K, OUT, bias=bias)), {nn.Linear}, dtype=dtype
        )
    ledger = bill(lambda: model(X))
    assert ledger.matmul_flops == PRODUCT
    assert ledger.flops == PRODUCT + there * N * K + (back + bias) * N * OUT
    assert ledger.bytes_read == 4 * N * K + size * K * OUT + 4 * OUT * bias
    assert ledger.bytes_written == 4 * N * OUT


def test_linear_layer_between_quantised_tensors():
    weight = torch.quantize_per_tensor(torch.rand(OUT, K), 0.1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, torch.rand(OUT))
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    assert bill(lambda: torch.ops.quantized.linear(x, packed, 0.1, 0)).flops == PRODUCT + 5 * N * OUT
    assert bill(lambda: torch.ops.quantized.linear_relu(x, packed, 0.1, 0)).flops == PRODUCT + 6 * N * OUT


def test_weights_of_eight_bits():
    x, weight = torch.rand(N, 32, dtype=torch.bfloat16), torch.ones(16, 32, dtype=torch.int8)
    ledger = bill(lambda: torch._weight_int8pack_mm(x, weight, torch.ones(16, dtype=torch.bfloat16)))
    assert (ledger.matmul_flops, ledger.flops) == (2 * N * 32 * 16, 2 * N * 32 * 16 + N * 16)


def test_scaled_products():
    x, y = (torch.empty(32, 32, device="meta").to(torch.float8_e4m3fn) for _ in range(2))
    one, bias = torch.ones(1, device="meta"), torch.ones(32, device="meta", dtype=torch.bfloat16)
    args = x, y.t(), [one], [0], [0], [one], [0], [0]
    for given, added in ((None, 0), (bias, 32 * 32)):
        ledger = bill(lambda given=given: torch.ops.aten._scaled_mm_v2(*args, given, torch.bfloat16))
        assert (ledger.matmul_flops, ledger.flops) == (2 * 32**3, 2 * 32**3 + added)
