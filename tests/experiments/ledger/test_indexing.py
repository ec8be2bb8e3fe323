import pytest
import torch
import torch.nn.functional as F

from experiments.ledger import Ledger

ROWS, D, B, K = 50, 8, 4, 3


def bill(function):
    with Ledger() as ledger:
        function()
    return ledger


@pytest.fixture
def table():
    return torch.randn(ROWS, D, requires_grad=True)


@pytest.fixture
def ids():
    return torch.randint(0, ROWS, (B, K))


def test_embedding_reads_the_rows_it_is_asked_for(table, ids):
    gradient = torch.ones(B, K, D)
    ledger = bill(lambda: F.embedding(ids, table).backward(gradient))
    read = B * K * D
    assert ledger.by_phase["backward"] == read
    assert ledger.bytes_by_phase["forward"] == 2 * read * 4 + B * K * 8
    assert (
        ledger.bytes_by_operator["aten.embedding_dense_backward"] == 2 * read * 4 + B * K * 8 + ROWS * D * 4
    )


def test_sparse_gradient_never_touches_the_table(table, ids):
    optimizer = torch.optim.SGD([table], lr=0.1)
    gradient = torch.ones(B, K, D)

    def step():
        F.embedding(ids, table, sparse=True).backward(gradient)
        optimizer.step()

    ledger = bill(step)
    assert ledger.by_phase == {"forward": 0, "backward": 0, "optimizer": 2 * B * K * D}
    assert ledger.bytes < ROWS * D * 4 * 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_embedding_bag(device):
    table = torch.randn(ROWS, D, device=device, requires_grad=True)
    ids = torch.zeros(B, K, dtype=torch.long, device=device)
    weights = torch.rand(B, K, device=device, requires_grad=True)
    gradient = torch.ones(B, D, device=device)
    ledger = bill(
        lambda: F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights).backward(gradient)
    )
    read = B * K * D
    assert ledger.by_phase == {"forward": 2 * read, "backward": 2 * read + 2 * read}
    plain = bill(lambda: F.embedding_bag(ids, table.detach(), mode="sum"))
    assert plain.flops == read
    mean = bill(lambda: F.embedding_bag(ids, table.detach(), mode="mean"))
    assert mean.flops == read + B * D


def test_accumulating_costs_one_operation_an_element(ids):
    source, index = torch.ones(B * K, D), ids.view(-1)
    wide = index[:, None].expand(-1, D)
    target = torch.zeros(ROWS, D)
    put = B * K * D
    for scatter, expected in (
        (lambda: target.index_add(0, index, source), put),
        (lambda: target.index_add_(0, index, source), put),
        (lambda: target.scatter_add(0, wide, source), put),
        (lambda: target.scatter_reduce(0, wide, source, "amax"), put),
        (lambda: target.index_put((index,), source, accumulate=True), put),
        (lambda: target.index_put((index,), source), 0),
        (lambda: target.scatter(0, wide, source), 0),
        (lambda: target.index_copy(0, index, source), 0),
        (lambda: torch.segment_reduce(source, "sum", lengths=torch.tensor([B, B * K - B])), put),
    ):
        assert bill(scatter).flops == expected


def test_scatter_in_place_touches_only_its_rows(ids):
    source, index, target = torch.ones(B * K, D), ids.view(-1), torch.zeros(ROWS, D)
    payload = 4 * B * K * D
    assert bill(lambda: target.index_add_(0, index, source)).bytes == 3 * payload + 8 * B * K
    assert (
        bill(lambda: target.index_add(0, index, source)).bytes == 3 * payload + 8 * B * K + 2 * 4 * ROWS * D
    )


def test_gather_backward_sums_what_it_spread(table, ids):
    gradient = torch.ones(B * K, D)
    assert bill(lambda: table[ids.view(-1)].backward(gradient)).by_phase["backward"] == B * K * D
    table.grad = None
    assert (
        bill(lambda: table.index_select(0, ids.view(-1)).backward(gradient)).by_phase["backward"] == B * K * D
    )
