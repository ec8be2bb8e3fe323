"""A training that ends when its FLOPs are spent."""

from __future__ import annotations

import copy
import math
import warnings
from numbers import Real
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from experiments.ledger.callback import LedgerCallback
from experiments.ledger.ledger import Ledger
from experiments.ledger.predict import predict
from experiments.ledger.price import Cost


class BudgetTooSmall(ValueError):  # noqa: N818 - says what the budget is, as NotPredictable says of a model
    """A budget that does not pay for the first optimizer step, which was given up.

    Args:
        budget: FLOPs that were given, on all processes together.
        price: FLOPs of one optimizer step on all of them; ``None`` if it cannot be predicted.
    """

    def __init__(self, budget: float, price: int | None = None) -> None:
        self.budget, self.price = budget, price
        super().__init__(budget, price)

    def __str__(self) -> str:
        told = f"a budget of {self.budget:,.0f} FLOPs does not pay for one optimizer step. "
        if self.price is None:
            return told + ("What one takes cannot be predicted for this model: give several times as much")
        return told + f"One takes {self.price:,} FLOPs: give at least max_flops={_rounded_up(self.price)}"


class FlopBudget(LedgerCallback):
    """A :class:`LedgerCallback` that ends training before the optimizer step that would exceed a budget.

    .. code-block:: python

        budget = FlopBudget(1e13)
        Trainer(callbacks=[budget], max_epochs=-1).fit(module, data)
        assert budget.train_flops <= 1e13

    Before each optimizer step its price is known, once one like it was watched, and so is the most that searches have
    cost in a step so far. Only a step whose like was never seen can exceed the budget, by less than itself: it is
    expected to cost as much as the dearest one seen. The very first is given up at the operator that exceeds the
    budget, with an error that says what a step takes; a budget that ends within the optimizer leaves parameters half
    updated. With gradients accumulated over several batches these are one step: all of them are taken, or none.

    Every curve that W&B draws has ``train_flops`` as its x-axis; other loggers get that column.

    Args:
        max_flops: FLOPs to spend on training, on all processes together; evaluation is not part of it.
        **options: As :class:`LedgerCallback` takes them.

    Raises:
        ValueError: If ``max_flops`` is no number from 1 on.
        BudgetTooSmall: In training, if it does not pay for the first step.
    """

    def __init__(self, max_flops: float, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(max_flops, Real) or not max_flops >= 1:
            raise ValueError(
                f"max_flops is {max_flops!r}: give what training may spend, such as max_flops=1e13"
            )
        self.max_flops = max_flops
        self._share = max_flops
        self._batch: Any = None
        self._since = 0
        self._least: int | None = None
        self._most = 0

    @property
    def flops_left(self) -> float:
        """What may still be spent by this process."""
        return self._share - self.train_flops

    def max_steps_for(self, budget: float) -> int:
        """Optimizer steps that a budget pays for, if all cost as much as the dearest so far."""
        if not self._most:
            raise RuntimeError("no step has been counted yet: train one first, or use predict and steps_for")
        return int(budget // self._most)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Share the budget out; make ``train_flops`` the x-axis."""
        self._share = self.max_flops / trainer.world_size
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.define_metric("train_flops")
                logger.experiment.define_metric("*", step_metric="train_flops")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Train nothing if what is left pays for no step."""
        super().on_train_start(trainer, pl_module)
        self._since = self.train_flops
        self._stop_if(trainer, self._least is not None and self._least > self.flops_left)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the training if not even the cheapest step so far would fit."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = None
        if not self._stepped:
            return
        spent = self.train_flops - self._since
        self._least = spent if self._least is None else min(spent, self._least)
        self._most = max(spent, self._most)
        self._stop_if(trainer, self._least > self.flops_left)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stop counting; say what a step takes where the first did not fit."""
        super().on_exception(trainer, pl_module, exception)
        batch, self._batch = self._batch, None
        if isinstance(exception, BudgetTooSmall):
            exception.price = self._predicted(trainer, pl_module, batch)

    def state_dict(self) -> dict[str, Any]:
        """Everything billed, and what steps cost."""
        return {**super().state_dict(), "least": self._least, "most": self._most}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; ``max_flops`` is this object's, so that a budget can be raised."""
        super().load_state_dict(state_dict)
        self._least, self._most = state_dict["least"], state_dict["most"]

    def _admit(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, number: int
    ) -> None:
        self._batch = batch
        parts = _parts(trainer, module)
        known = self._train.expected(self._before)
        if number % parts:
            if self._least is None and known is not None and known > self.flops_left:
                raise BudgetTooSmall(self.max_flops)
            return
        self._since = self.train_flops
        price = self._most if known is None or parts > 1 else known + self._metered.most
        if self._stop_if(trainer, bool(self.steps) and price > self.flops_left):
            # The loop's own way to end before a batch is used.
            raise StopIteration

    def _ledger(self, module: nn.Module, phase: str | None) -> Ledger:
        if phase is not None or self._least is not None:
            return super()._ledger(module, phase)
        return _FirstStep(self, module)

    def _predicted(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any
    ) -> int | None:
        parts = _parts(trainer, module)
        # The copy takes a step, not the module: what that leaves behind in a module is nobody's training.
        shells = {id(x): _shell(x) for x in (*module.parameters(), *module.buffers())}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the copy has no trainer to log to
                model = copy.deepcopy(module, shells)
                clip = trainer.gradient_clip_val or None
                step = predict(lambda: model, batch, clip_norm=clip, prices=self.prices)
        except Exception:  # what a copy or shapes cannot do is no second failure of a run that has ended
            return None
        optimizer = step.by_phase.get("optimizer", 0)
        added = sum(x.numel() for x in module.parameters() if x.requires_grad)
        price = trainer.world_size * (parts * (step.flops - optimizer + added) - added + optimizer)
        # Precision plugins and strategies may do more than the model says.
        return price if price > self.max_flops else None

    def _stop_if(self, trainer: lightning.Trainer, over: bool) -> bool:
        # All processes must stop together.
        if trainer.world_size > 1:
            over = trainer.strategy.reduce_boolean_decision(over, all=False)
        if over and not trainer.should_stop:
            rank_zero_info(
                f"FlopBudget: {self.train_flops:,} of {self._share:,.0f} FLOPs are spent; the next step does not fit"
            )
        trainer.should_stop = trainer.should_stop or over
        return over


class _FirstStep(Ledger):
    """Ends a training at the operator that exceeds what is left."""

    def __init__(self, budget: FlopBudget, module: nn.Module) -> None:
        super().__init__(module, budget.prices)
        self._budget, self._left = budget, budget.flops_left

    def record(self, phase: str, operator: str, module: str, cost: Cost) -> None:
        super().record(phase, operator, module, cost)
        self._left -= cost.flops
        if self._left < 0:
            raise BudgetTooSmall(self._budget.max_flops)


def _parts(trainer: lightning.Trainer, module: lightning.LightningModule) -> int:
    """Batches of an optimizer step."""
    return trainer.accumulate_grad_batches if module.automatic_optimization else 1


def _shell(tensor: Tensor) -> Tensor:
    """The same tensor without its values, so that a copy of a module takes no memory."""
    bare = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        bare = nn.Parameter(bare, tensor.requires_grad)
    # What optimizers are told of a parameter is an attribute of it.
    vars(bare).update(vars(tensor))
    return bare


def _rounded_up(amount: int) -> str:
    """Three digits, none too few: ``1.16e+06``."""
    step = 10 ** max(math.floor(math.log10(amount)) - 2, 0)
    return f"{-(-amount // step) * step:.3g}"
