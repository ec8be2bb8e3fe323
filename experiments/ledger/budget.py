"""A training that ends when its FLOPs are spent."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from experiments.ledger.callback import LedgerCallback


class FlopBudget(LedgerCallback):
    """A :class:`LedgerCallback` that ends training before the optimizer step that would exceed a budget.

    .. code-block:: python

        budget = FlopBudget(1e13)
        Trainer(callbacks=[budget], max_epochs=-1).fit(module, data)
        assert budget.train_flops <= 1e13

    Before each optimizer step its price is known, once one like it was watched, and so is the most that searches have
    cost in a step so far. Only a step whose like was never seen can exceed the budget, by less than itself: it is
    expected to cost as much as the dearest one seen, and the very first is taken in any case. With gradients
    accumulated over several batches these are one step: all of them are taken, or none.

    Every curve that W&B draws has ``train_flops`` as its x-axis; other loggers get that column.

    Args:
        max_flops: FLOPs to spend on training, on all processes together; evaluation is not part of it.
        **options: As :class:`LedgerCallback` takes them.

    Raises:
        ValueError: If nothing could be trained.
    """

    def __init__(self, max_flops: float, **options: Any) -> None:
        super().__init__(**options)
        if not max_flops >= 1:
            raise ValueError(
                f"max_flops is {max_flops}: give what training may spend, such as max_flops=1e13"
            )
        self.max_flops = max_flops
        self._share = max_flops
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
        if not self._stepped:
            return
        spent = self.train_flops - self._since
        self._least = spent if self._least is None else min(spent, self._least)
        self._most = max(spent, self._most)
        self._stop_if(trainer, self._least > self.flops_left)

    def state_dict(self) -> dict[str, Any]:
        """Everything billed, and what steps cost."""
        return {**super().state_dict(), "least": self._least, "most": self._most}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; ``max_flops`` is this object's, so that a budget can be raised."""
        super().load_state_dict(state_dict)
        self._least, self._most = state_dict["least"], state_dict["most"]

    def _admit(self, trainer: lightning.Trainer, module: lightning.LightningModule, number: int) -> None:
        parts = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        if number % parts:
            return
        self._since = self.train_flops
        known = self._train.expected(self._before)
        price = self._most if known is None or parts > 1 else known + self._metered.most
        if self._stop_if(trainer, bool(self.steps) and price > self.flops_left):
            # The loop's own way to end before a batch is used.
            raise StopIteration

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
