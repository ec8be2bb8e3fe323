import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.ledger import Ledger

B, T, D, H = 3, 5, 8, 16


def bill(function):
    with Ledger() as ledger:
        function()
    return ledger


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_forward_and_backward(device, bias):
    layer = nn.Linear(D, H, bias=bias, device=device)
    x = torch.randn(B * T, D, device=device, requires_grad=True)
    gradient = torch.ones(B * T, H, device=device)
    ledger = bill(lambda: layer(x).backward(gradient))
    product = 2 * B * T * D * H
    assert ledger.by_phase == {
        "forward": product + bias * B * T * H,
        "backward": 2 * product + bias * B * T * H,
    }
    assert ledger.matmul_flops == 3 * product
    assert ledger.bytes_by_phase["forward"] == 4 * (B * T * D + D * H + bias * H + B * T * H)


def test_mlp():
    mlp = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))
    x = torch.randn(B, T, D)
    ledger = bill(lambda: mlp(x).sum().backward())
    n, product = B * T, 2 * B * T * D * H
    assert ledger.by_phase["forward"] == 2 * product + n * (H + D) + n * H + n * D
    # The input wants no gradient, so the first layer pays for its weight only.
    assert ledger.by_phase["backward"] == 3 * product + n * (H + D) + n * H
    assert ledger.matmul_flops == 5 * product


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda: torch.mv(torch.ones(4, 6), torch.ones(6)), 2 * 4 * 6),
        (lambda: torch.dot(torch.ones(6), torch.ones(6)), 2 * 6),
        (lambda: torch.bmm(torch.ones(3, 4, 6), torch.ones(3, 6, 5)), 2 * 3 * 4 * 6 * 5),
        (
            lambda: torch.baddbmm(torch.ones(3, 4, 5), torch.ones(3, 4, 6), torch.ones(3, 6, 5)),
            3 * 4 * 5 * (2 * 6 + 1),
        ),
        (
            lambda: torch.baddbmm(torch.ones(3, 4, 5), torch.ones(3, 4, 6), torch.ones(3, 6, 5), beta=0),
            3 * 4 * 5 * 12,
        ),
        (
            lambda: torch.addmm(torch.ones(5), torch.ones(4, 6), torch.ones(6, 5), alpha=2.0),
            4 * 5 * (2 * 6 + 2),
        ),
        (
            lambda: torch.addbmm(torch.ones(4, 5), torch.ones(3, 4, 6), torch.ones(3, 6, 5)),
            2 * 3 * 4 * 6 * 5 + 4 * 5,
        ),
        (lambda: torch.einsum("bk,bkd->bd", torch.ones(2, 3), torch.ones(2, 3, 4)), 2 * 2 * 3 * 4),
    ],
    ids=["mv", "dot", "bmm", "baddbmm", "baddbmm-beta0", "addmm-alpha", "addbmm", "einsum"],
)
def test_products(function, flops):
    assert bill(function).flops == flops


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolution_counts_groups(groups):
    layer = nn.Conv1d(8, 8, 3, groups=groups, padding=1)
    x = torch.randn(2, 8, 10, requires_grad=True)
    gradient = torch.ones(2, 8, 10)
    ledger = bill(lambda: layer(x).backward(gradient))
    once = 2 * 2 * 10 * 8 * (8 // groups) * 3
    assert ledger.by_phase == {"forward": once + 160, "backward": 2 * once + 160}


def test_transposed_convolution():
    layer = nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False)
    assert bill(lambda: layer(torch.ones(2, 4, 10))).flops == 2 * 2 * 10 * 4 * 6 * 3


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_products_cost_their_stored_entries(layout):
    dense = torch.zeros(100, 100)
    dense[torch.arange(7), torch.arange(7)] = 1.0
    sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    x = torch.ones(100, 6)
    ledger = bill(lambda: sparse @ x)
    assert ledger.flops == 2 * 7 * 6
    pointers = 2 * 7 * 8 if layout == "coo" else 101 * 8 + 7 * 8
    assert ledger.bytes == 7 * 4 + pointers + 2 * 100 * 6 * 4


def test_lstm_costs_its_gates():
    layer = nn.LSTM(8, 16)
    x = torch.randn(5, 2, 8)
    ledger = bill(lambda: layer(x))
    assert ledger.matmul_flops == 2 * 5 * 2 * 4 * 16 * (8 + 16)


def test_autocast_changes_bytes_and_not_flops():
    layer, x = nn.Linear(D, H, bias=False), torch.randn(B, D)

    def low():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)

    plain, cast = bill(lambda: layer(x)), bill(low)
    assert plain.flops == cast.flops
    assert cast.bytes_by_operator["aten.mm"] == 2 * (B * D + D * H + B * H)
    assert cast.bytes_by_operator["aten._to_copy"] == 6 * (B * D + D * H)


def test_inference_mode_costs_the_same():
    layer, x = nn.Linear(D, H), torch.randn(B, T, D)

    def inference():
        with torch.inference_mode():
            F.gelu(torch.einsum("bth,h->bt", layer(x), layer.bias))

    def grad():
        F.gelu(torch.einsum("bth,h->bt", layer(x), layer.bias))

    assert bill(inference).to_dict()["by_operator"] == bill(grad).to_dict()["by_operator"]


def test_complex_numbers_are_two_each():
    a, b, bias = (torch.rand(*size, dtype=torch.cfloat) for size in ((B, D), (D, H), (H,)))
    product = 8 * B * D * H
    assert bill(lambda: a @ b + bias).flops == product + 2 * B * H
    assert bill(lambda: torch.addmm(bias, a, b)).flops == product + 2 * B * H
    # By a real number two products an element, by a complex one four and two sums.
    assert bill(lambda: torch.addmm(bias, a, b, beta=2)).flops == product + 4 * B * H
    assert bill(lambda: torch.addmm(bias, a, b, beta=2j)).flops == product + 8 * B * H
    assert bill(lambda: torch.addmm(bias, a, b, beta=0)).flops == product
    assert bill(lambda: torch.addr(b, b[:, 0], b[0])).flops == 8 * D * H


def test_convolution_over_sequences_time_first():
    x, weight, bias = torch.rand(T, B, D), torch.rand(3, D, H), torch.rand(H)
    x.requires_grad_()
    out = torch.ones(T - 2, B, H)
    ledger = bill(lambda: torch.conv_tbc(x, weight, bias).backward(out))
    same = bill(lambda: F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias))
    product = 2 * (T - 2) * B * 3 * D * H
    assert ledger.by_phase["forward"] == same.flops == product + (T - 2) * B * H
    # Its backward computes both gradients, whoever asks.
    assert ledger.matmul_flops == 3 * product


def test_lists_of_products():
    pairs = [torch.rand(B, D), torch.rand(T, D)], [torch.rand(D, H), torch.rand(D, T)]
    assert bill(lambda: torch.ops.aten._foreach_mm(*pairs)).matmul_flops == 2 * D * (B * H + T * T)


@pytest.mark.parametrize("frozen", [(), ("input",), ("weight", "bias")], ids=str)
def test_cross_entropy_of_a_linear_layer_in_chunks(frozen):
    options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=4)
    rows, classes = 7, 11

    def tensors():
        named = (("input", (rows, D)), ("weight", (classes, D)), ("bias", (classes,)))
        return [torch.rand(size).requires_grad_(name not in frozen) for name, size in named]

    target = torch.zeros(rows, dtype=torch.long)

    def spelled():
        x, weight, bias = tensors()
        F.cross_entropy(F.linear(x, weight, bias), target).backward()

    def chunked():
        x, weight, bias = tensors()
        F.linear_cross_entropy(x, weight, target, linear_bias=bias, options=options).backward()

    plain, ledger = bill(spelled), bill(chunked)
    assert ledger.matmul_flops == plain.matmul_flops == (3 - bool(frozen)) * 2 * rows * classes * D
    # The gradients wait for that of the loss and are multiplied with it.
    scaled = sum(x.numel() for x in tensors() if x.requires_grad)
    assert ledger.flops == plain.flops + scaled
    assert ledger.by_phase["backward"] == scaled
