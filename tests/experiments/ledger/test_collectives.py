"""What processes exchange, on a process group of which only this process exists."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.testing._internal.distributed.fake_pg import FakeStore

from experiments.ledger import Ledger

WORLD, N = 4, 12
FLOATS = 4 * N


@pytest.fixture(autouse=True, scope="module")
def group():
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def bill(call):
    with Ledger() as ledger:
        call()
    return ledger.flops, ledger.bytes_read, ledger.bytes_written


def places(count=WORLD):
    return [torch.empty(N) for _ in range(count)]


X = torch.ones(N)
CALLS = {
    # FLOPs; bytes sent and received.
    "all_reduce": (
        lambda: dist.all_reduce(X.clone()),
        lambda: functional.all_reduce(X, "sum", dist.group.WORLD).wait(),
        (N, FLOATS, FLOATS),
    ),
    "all_gather": (
        lambda: dist.all_gather_into_tensor(torch.empty(WORLD * N), X),
        lambda: functional.all_gather_tensor(X, 0, dist.group.WORLD).wait(),
        (0, FLOATS, WORLD * FLOATS),
    ),
    "reduce_scatter": (
        lambda: dist.reduce_scatter_tensor(torch.empty(N // WORLD), X),
        lambda: functional.reduce_scatter_tensor(X, "sum", 0, dist.group.WORLD).wait(),
        (N // WORLD, FLOATS, FLOATS // WORLD),
    ),
    "all_to_all": (
        lambda: dist.all_to_all_single(torch.empty(N), X),
        lambda: functional.all_to_all_single(X, None, None, dist.group.WORLD).wait(),
        (0, FLOATS, FLOATS),
    ),
    "broadcast": (
        lambda: dist.broadcast(X.clone(), 0),
        lambda: functional.broadcast(X, 0, dist.group.WORLD).wait(),
        (0, FLOATS, FLOATS),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_functional_collectives_cost_what_the_others_do(name):
    plain, functional_form, expected = CALLS[name]
    copies = FLOATS if name in ("all_reduce", "broadcast") else 0
    flops, read, written = bill(plain)
    assert (flops, read - copies, written - copies) == expected
    assert bill(functional_form) == expected


def test_places_for_results_are_not_read():
    assert bill(lambda: dist.all_gather(places(), X)) == (0, FLOATS, WORLD * FLOATS)
    assert bill(lambda: dist.reduce_scatter(torch.empty(N), places())) == (N, WORLD * FLOATS, FLOATS)


def test_waiting_is_free():
    assert bill(lambda: torch.ops._c10d_functional.wait_tensor(X)) == (0, 0, 0)


def test_copies_of_sharded_training():
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    assert _fsdp_collectives
    pieces, out = [torch.ones(4, 3), torch.ones(8)], torch.empty(WORLD, 5)
    assert bill(lambda: torch.ops.fsdp.chunk_cat(pieces, 0, WORLD, out=out)) == (0, 80, 80)
    whole = torch.empty(WORLD * 20)
    ends = [12, 8]
    assert bill(
        lambda: torch.ops.fsdp.all_gather_copy_in([p.flatten() for p in pieces], whole, ends, 20, 1)
    ) == (0, 80, 80)
    parts = [torch.empty(WORLD, 12), torch.empty(WORLD, 8)]
    sharded = whole.view(WORLD, 20)
    assert bill(lambda: torch.ops.fsdp.split_with_sizes_copy(sharded, ends, 1, out=parts)) == (0, 320, 320)
