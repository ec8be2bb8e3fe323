import json
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from experiments.ledger import Bill, Cost, Ledger, UnpricedOperator, elementwise

N, D = 3, 4
PRODUCT = 2 * N * D * D


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(D, D, bias=False)
        self.memory = nn.Linear(D, D, bias=False)

    def forward(self, x):
        return self.dense(x) + self.memory(x)


def test_parallel_branches_are_told_apart_in_backward():
    model = nn.Sequential(nn.Linear(D, D, bias=False), Parallel())
    with Ledger(model) as ledger:
        model(torch.ones(N, D)).sum().backward()
    modules = {name: cost.matmul_flops for name, cost in ledger.costs("module").items()}
    assert modules["1.dense"] == modules["1.memory"] == 3 * PRODUCT
    assert modules["0"] == 2 * PRODUCT
    assert modules["1"] == 6 * PRODUCT
    assert modules["Sequential"] == ledger.matmul_flops == 8 * PRODUCT
    assert ledger.by_module["Sequential"] + ledger.by_module["(outside)"] == ledger.flops


def test_views_add_up():
    model = Parallel()
    with Ledger(model) as ledger:
        model(torch.ones(N, D)).sum().backward()
    assert sum(ledger.by_phase.values()) == sum(ledger.by_operator.values()) == ledger.flops
    assert sum(ledger.bytes_by_phase.values()) == sum(ledger.bytes_by_operator.values()) == ledger.bytes
    assert all(type(number) is int for number in (ledger.flops, ledger.matmul_flops, ledger.bytes))


def test_modules_are_named_by_class_without_a_model():
    first, second = nn.Linear(D, D), nn.Linear(D, D)
    with Ledger() as ledger:
        (Parallel()(second(first(torch.ones(N, D))))).sum().backward()
    names = set(ledger.by_module)
    assert names >= {"Linear", "Linear#2", "Parallel", "Parallel.dense", "Parallel.memory", "(outside)"}


def test_accumulated_gradients_belong_to_their_parameter():
    model = Parallel()
    model(torch.ones(N, D)).sum().backward()
    with Ledger(model) as ledger:
        model.dense(torch.ones(N, D)).sum().backward()
    assert ledger.by_phase["backward"] == PRODUCT + D * D
    assert ledger.by_module["dense"] == 2 * PRODUCT + D * D


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_forward_is_billed_again_in_its_module(reentrant):
    model = Parallel()
    x = torch.ones(N, D, requires_grad=True)
    with Ledger(model) as ledger:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    costs = ledger.costs("module")
    # forward, again, and two gradients; without reentry the product nobody reads again may be left out
    assert costs["dense"].matmul_flops == 4 * PRODUCT
    assert costs["memory"].matmul_flops in (3 * PRODUCT, 4 * PRODUCT)
    phases = {name: cost.matmul_flops for name, cost in ledger.costs("phase").items()}
    assert phases["forward"] == 2 * PRODUCT
    assert phases["backward"] == 4 * PRODUCT
    assert phases["recompute"] == costs["memory"].matmul_flops + costs["dense"].matmul_flops - 6 * PRODUCT
    assert ledger.flops - ledger.needed_flops == ledger.recompute_flops == ledger.by_phase["recompute"]
    assert "needed" in str(ledger)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_work_outside_modules_is_told_apart(reentrant):
    bills = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        x = torch.ones(N, D, requires_grad=True)
        with Ledger() as ledger:
            run(lambda x: (x.exp() * x).sin().sum(), x).backward()
        bills.append(ledger)
    plain, checkpointed = bills
    assert plain.recompute_flops == 0
    # Without reentry the recomputation ends with the last tensor that backward reads.
    assert checkpointed.recompute_flops == (4 if reentrant else 2) * N * D
    assert checkpointed.needed_flops == plain.flops == plain.needed_flops


def test_gradient_of_a_gradient_is_no_recomputation():
    x = torch.ones(N, requires_grad=True)
    with Ledger() as ledger:
        torch.autograd.grad(x.exp().sum(), x, create_graph=True)
    assert set(ledger.by_phase) == {"forward", "backward"}


def rounded(x):
    """By an operator that has no price."""
    return torch._fake_quantize_learnable_per_tensor_affine(x, torch.ones(1), torch.zeros(1), 0, 255)


def test_unpriced_operator_names_itself_and_its_place():
    class Strange(nn.Module):
        def forward(self, x):
            return rounded(x)

    model = nn.Sequential(Strange())
    with (
        pytest.raises(
            UnpricedOperator, match=r"aten\._fake_quantize_learnable_per_tensor_affine\.default"
        ) as error,
        Ledger(model),
    ):
        model(torch.ones(N, N))
    text = str(error.value)
    assert "module: 0" in text
    assert "test_ledger.py" in text
    assert "rounded" in error.value.line or "_fake_quantize_learnable" in error.value.line
    assert "float32[3, 3]" in text
    assert "prices={torch.ops.aten._fake_quantize_learnable_per_tensor_affine: " in text


def test_unpriced_operator_in_backward_is_an_error_too():
    x = torch.eye(N, requires_grad=True)
    y = rounded(x).sum()
    with pytest.raises(UnpricedOperator), Ledger():
        y.backward()


def test_the_line_in_the_error_works():
    x = torch.ones(N, N)
    operator = torch.ops.aten._fake_quantize_learnable_per_tensor_affine
    scale, zero = torch.ones(1), torch.zeros(1)
    with Ledger(prices={operator: elementwise(1, "why")}) as ledger:
        operator(x, scale, zero, 0, 255)
    assert ledger.by_operator == {"aten._fake_quantize_learnable_per_tensor_affine": N * N}


@torch.library.custom_op("ledgertest::search", mutates_args=())
def search(queries: torch.Tensor, visited: int) -> torch.Tensor:
    return queries.clone()


@search.register_fake
def _(queries, visited):
    return torch.empty_like(queries)


def search_flops(queries, visited, *, out_val, **kwargs):
    return 2 * visited * queries.shape[-1]


def search_bytes(queries, visited, **kwargs):
    return 4 * visited * queries.shape[-1], 8, 16


search_flops.bytes_formula = search_bytes
register_flop_formula(torch.ops.ledgertest.search, get_raw=True)(search_flops)


@torch.library.custom_op("ledgertest::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operator_with_a_registered_formula(device):
    queries = torch.ones(N, D, device=device)
    with Ledger() as ledger:
        search(queries, 100)
    assert ledger.by_phase == {"search": 2 * 100 * D}
    assert ledger.bytes_by_phase == {"search": 4 * 100 * D + 8}
    assert (ledger.bytes_read, ledger.bytes_written, ledger.bytes_random) == (4 * 100 * D, 8, 16)
    assert ledger.by_operator == {"ledgertest.search": 2 * 100 * D}
    assert ledger.matmul_flops == 0


def test_operator_without_a_formula_is_an_error():
    with pytest.raises(UnpricedOperator, match=r"ledgertest\.unknown"), Ledger():
        unknown(torch.ones(N))


def test_named_phase_overrides_and_outside_work_is_added():
    with Ledger() as ledger:
        with ledger.phase("build"):
            torch.ones(N).requires_grad_().sum().backward()
            search(torch.ones(N, D), 1)
        ledger.add("search", flops=10**20, bytes_read=4, bytes_written=3, bytes_random=2)
    assert ledger.by_phase == {"build": N + 2 * D, "search": 10**20}
    assert ledger.bytes_by_phase["search"] == 7


def test_opening_again_adds_and_opening_twice_is_refused():
    ledger = Ledger()
    for _ in range(2):
        with ledger:
            torch.ones(N) + 1
    assert ledger.flops == 2 * N
    with ledger, pytest.raises(RuntimeError, match="already open"):
        ledger.__enter__()


def test_nested_ledgers_agree():
    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    with Ledger() as outer, Ledger() as inner:
        nn.functional.dropout(nn.functional.scaled_dot_product_attention(q, q, q)).sum().backward()
    assert outer.to_dict() == inner.to_dict()


def test_other_threads_are_not_watched():
    model = nn.Linear(D, D)
    with Ledger(model) as ledger:
        thread = threading.Thread(target=lambda: nn.functional.dropout(model(torch.ones(N, D))))
        thread.start()
        thread.join()
    assert ledger.flops == 0


def test_inner_gradient_belongs_to_its_module():
    class Learns(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, D, bias=False)

        def forward(self, x):
            loss = self.layer(x).square().sum()
            return torch.autograd.grad(loss, self.layer.weight, create_graph=True)[0]

    model = Learns()
    with Ledger(model) as ledger:
        model(torch.ones(N, D))
    assert ledger.costs("module")["layer"].matmul_flops == 2 * PRODUCT


def test_table_is_plain_and_complete():
    model = nn.Sequential(*(nn.Linear(D, D) for _ in range(11)))
    with Ledger(model) as ledger:
        model(torch.ones(N, D)).sum().backward()
    lines = str(ledger).splitlines()
    assert f"{ledger.flops:,} FLOPs" in lines[-2]
    assert f"{ledger.bytes:,} bytes" in lines[-1]
    assert max(map(len, lines)) <= 114
    assert any(line.split()[0] == "aten.addmm" for line in lines if line.strip())
    order = [line.split()[0] for line in lines if line.strip() and line.split()[0].isdigit()]
    assert order == [str(number) for number in range(11)]


def test_bill_survives_json():
    model = Parallel()
    with Ledger(model) as ledger:
        model(torch.ones(N, D)).sum().backward()
    state = json.loads(json.dumps(ledger.to_dict()))
    assert Bill.from_dict(state).to_dict() == ledger.to_dict()
    assert state["flops"] == ledger.flops


def test_bills_multiply():
    bill, twice = Bill(), Bill()
    bill.record("forward", "aten.mm", "a", Cost(5, 4, 3, 2, 1))
    twice.include(bill, times=2)
    assert twice.total() == Cost(10, 8, 6, 4, 2)
    with pytest.raises(ValueError, match="not by 'layer'"):
        bill.costs("layer")
