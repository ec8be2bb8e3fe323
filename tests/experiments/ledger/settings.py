"""The settings in which one call must have one bill."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.ledger import Ledger

#: Builds a module, or a function, and its inputs, on the device that is the default when it is called.
Case = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Setting:
    device: str = "cpu"
    train: bool = True
    gradients: Callable[[], Any] | None = None
    autocast: bool = False


TRAINING = Setting()
SETTINGS = {
    "eval": Setting(train=False),
    "no_grad": Setting(gradients=torch.no_grad),
    "inference_mode": Setting(train=False, gradients=torch.inference_mode),
    "meta": Setting(device="meta"),
    "autocast": Setting(autocast=True),
}


def floating(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        if nested.is_floating_point():
            yield nested
    elif isinstance(nested, Mapping):
        yield from floating(list(nested.values()))
    elif isinstance(nested, (list, tuple)):
        for item in nested:
            yield from floating(item)


def bill(case: Case, setting: Setting = TRAINING) -> Ledger:
    torch.manual_seed(0)
    with torch.device(setting.device):
        function, *inputs = case()
    if isinstance(function, nn.Module):
        function.to(setting.device).train(setting.train)
    inputs = [x.to(setting.device) if isinstance(x, Tensor) else x for x in inputs]
    if setting.gradients is None:
        inputs = [
            x.requires_grad_()
            if isinstance(x, Tensor) and x.is_floating_point() and x.is_leaf and not i
            else x
            for i, x in enumerate(inputs)
        ]
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if setting.autocast else nullcontext()
    with Ledger() as ledger, (setting.gradients or nullcontext)():
        with cast:
            outputs = [y for y in floating(function(*inputs)) if y.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    return ledger


def flops(ledger: Ledger, setting: Setting) -> dict[str, tuple[int, int]]:
    phases = ["forward"] if setting.gradients else ["forward", "backward"]
    costs = {phase: cost for phase, cost in ledger.costs("phase").items() if phase in phases and cost.flops}
    return {phase: (cost.flops, cost.matmul_flops) for phase, cost in costs.items()}


def assert_one_bill(case: Case, cannot: Mapping[str, str] = {}, differs: Mapping[str, str] = {}) -> None:
    """Nothing is unpriced and every setting has the same FLOPs, but those named, which must still not run or differ."""
    training = bill(case)
    for name, setting in SETTINGS.items():
        if name in cannot:
            with pytest.raises((RuntimeError, AssertionError), match=cannot[name]):
                bill(case, setting)
            continue
        here = flops(bill(case, setting), setting)
        assert (here == flops(training, setting)) == (name not in differs), (name, here)
