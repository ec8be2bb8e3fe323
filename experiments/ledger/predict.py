"""The bill of a step before anything is trained: run on the meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.ledger.bill import Bill
from experiments.ledger.ledger import Ledger
from experiments.ledger.machine import Machine
from experiments.ledger.price import Price, tensors
from experiments.ledger.prices import Operator

# What torch says where there are no values. Grouped products, of experts, exist on meta in one type alone.
_NO_VALUES = ("meta", "data-dependent", "expected inputs of bf16 type")


class NotPredictable(RuntimeError):  # noqa: N818 - says what the model is, as UnpricedOperator does
    """A model whose work cannot be told from shapes: it looks at values, which the meta device does not have."""


def predict(
    build: Callable[[], nn.Module],
    batch: Any,
    *,
    train: bool = True,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    optimizer: Callable[..., Optimizer] | None = None,
    clip_norm: float | None = None,
    device: str = "meta",
    prices: Mapping[Operator, Price] | None = None,
    machine: Machine | None = None,
) -> Bill:
    """What one step will cost, at no memory and little time: to the last FLOP what a ledger counts when it is taken.

    .. code-block:: python

        predict(lambda: Transformer(32_000, 4096, 32), torch.zeros(8, 2048, dtype=torch.int64), train=False).flops

    A training step is one that is not the first: the optimizer has its state. It is counted

    * of a LightningModule: ``training_step(batch, 0)`` and the optimizer it configures (the first, of several);
    * of any other model: ``loss(model, batch)``, its backward and ``optimizer(model.parameters())``. By default the
      loss is that of a Hugging Face model (``model(**batch).loss``), or a model's output itself if that is one
      number; for anything else a gradient of ones is sent back through the outputs.

    A model is called with a mapping as keywords, with a tuple or list as arguments, else with the batch alone.
    Reading, ``train=False``, is calling the model in eval mode without gradients. Bytes are those of the types of the
    parameters (autocast has no effect on meta), and can differ by a millionth: a few numbers are copied otherwise.

    Where the model makes an attention mask, as Hugging Face does for padding, sliding windows and ALiBi, the mask has
    no values on meta and hides nothing: the bill is an upper bound, and its ``upper_bound`` says so.

    Args:
        build: Makes the model; called once, on ``device``.
        batch: What the model is given.
        train: A training step, or reading.
        loss: The loss, where the rules above do not say it.
        optimizer: Made of the parameters, such as ``torch.optim.AdamW``; without one (and no LightningModule) the
            step ends with the gradients.
        clip_norm: Norm to which gradients are clipped before the optimizer steps.
        device: "meta", or where to take the step for real.
        prices: As :class:`~experiments.ledger.Ledger` takes them.
        machine: Where a step is taken for real: measures one more, unwatched.

    Shapes:
        batch: as in training; on "meta" only shapes and types matter

    Raises:
        NotPredictable: If the model looks at values: searches, sizes that a layer reads off a tensor. With
            ``device="cpu"`` the step is taken instead of predicted.
    """
    with ExitStack() as stack:
        stack.enter_context(_fused_on(device))
        with torch.device(device):
            model = build()
        if isinstance(model, lightning.LightningModule):
            with torch.device(device):
                model.configure_model()
        # What was made of numbers, or loaded, stands where it was made.
        model = model.to(device)
        batch = move_data_to_device(batch, torch.device(device))
        ledger = Ledger(model, prices)
        try:
            if train:
                _train(model, batch, ledger, loss, optimizer, clip_norm, machine)
            else:
                model.eval()
                stack.enter_context(torch.no_grad())
                with ledger:
                    _call(model, batch)
                if machine is not None:
                    with machine:
                        _call(model, batch)
        except (NotImplementedError, RuntimeError) as error:
            if device != "meta" or not _needs_values(error):
                raise
            raise NotPredictable(
                f"{type(model).__name__} looks at values, which a prediction does not have "
                f"({str(error).splitlines()[0].split('. ')[0]}): take the step for real, with device='cpu'"
            ) from error
    return ledger.closed()


def _train(
    model: nn.Module,
    batch: Any,
    ledger: Ledger,
    loss: Callable[[nn.Module, Any], Tensor] | None,
    optimizer: Callable[..., Optimizer] | None,
    clip_norm: float | None,
    machine: Machine | None,
) -> None:
    model.train()
    stepper = _optimizer(model, optimizer)

    def step(watch: bool) -> None:
        with ExitStack() as stack:
            if watch:
                stack.enter_context(ledger)
            outputs = _forward(model, batch, loss)
        seeds = [torch.ones_like(x) for x in outputs] if outputs[0].ndim else None
        with ExitStack() as stack:
            if watch:
                stack.enter_context(ledger)
            torch.autograd.backward(outputs, seeds)
            if clip_norm is not None:
                with ledger.phase("optimizer"):
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            if stepper is not None:
                stepper.step()
        model.zero_grad()

    if stepper is not None:
        # The first one also fills the optimizer's state, which no other does.
        step(watch=False)
    step(watch=True)
    if machine is not None:
        with machine:
            step(watch=False)


def _forward(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor] | None) -> list[Tensor]:
    """The loss alone, or every output that has gradients."""
    if loss is not None:
        return [loss(model, batch)]
    if isinstance(model, lightning.LightningModule):
        found = model.training_step(batch, 0)
        found = found["loss"] if isinstance(found, Mapping) else found
        if not isinstance(found, Tensor):
            raise ValueError(
                f"{type(model).__name__}.training_step returns no loss: give loss=lambda module, batch: ..., or count "
                "a run with LedgerCallback"
            )
        # Lightning divides by the number of accumulated batches, even if that is one.
        return [found / 1]
    out = _call(model, batch)
    found = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(found, Tensor):
        return [found]
    outputs = [x for x in tensors(out) if x.requires_grad]
    if not outputs:
        raise ValueError(f"nothing that {type(model).__name__} returns has a gradient: use train=False")
    return outputs


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping) and not isinstance(model, lightning.LightningModule):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _optimizer(model: nn.Module, make: Callable[..., Optimizer] | None) -> Optimizer | None:
    if make is not None:
        return make(model.parameters())
    if not isinstance(model, lightning.LightningModule):
        return None
    found: Any = model.configure_optimizers()
    while not isinstance(found, Optimizer):
        if not found:
            return None
        found = found["optimizer"] if isinstance(found, Mapping) else found[0]
    return found


@contextmanager
def _fused_on(device: str) -> Iterator[None]:
    """Fused optimizers run on the meta device as everywhere, but a list they look into leaves it out."""
    home: Any = sys.modules[Optimizer.__module__]
    listed = home._get_fused_kernels_supported_devices
    home._get_fused_kernels_supported_devices = lambda: [*listed(), device]
    try:
        yield
    finally:
        home._get_fused_kernels_supported_devices = listed


def _needs_values(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(word in text for word in _NO_VALUES)
